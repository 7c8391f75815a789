"""The rooms, which are subpackages, and the imports between them that docs/architecture.md allows."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "cocoseg"
# All but `commands`.
ALL = {"figures", "images", "mask_images", "preparation", "networks", "budget", "data", "inference", "sweeps"}
ALL |= {"training", "evaluation"}
# Room -> rooms that it may import, the ground floor (modules directly in cocoseg/) apart.
MAY_IMPORT = {
    "figures": set(),
    "images": set(),
    "networks": set(),
    "budget": set(),
    "mask_images": {"images"},
    "preparation": {"figures", "images", "mask_images"},
    "data": {"preparation", "networks", "images"},
    "sweeps": {"budget"},
    "inference": {"networks", "preparation", "figures", "images"},
    "evaluation": {"inference", "data", "networks", "preparation", "figures"},
    "training": ALL - {"training", "evaluation"},
    "commands": ALL,
}
ENTRY_POINTS = {"export": {"commands"}, "leaderboard": {"commands"}}  # modules that users run
OF_NETWORKS = {"cocoseg.networks.pixels", "cocoseg.networks.spec"}  # all that data/ takes of networks/
MOST_MODULES = 20  # per folder


@cache
def imports(path: Path) -> set[str]:
    """Modules of cocoseg that a file imports, wherever in it."""
    return set(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("cocoseg."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "cocoseg":
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if (SOURCE.parent / (module.replace(".", "/") + ".py")).exists() else node.module


def room(module: str) -> str | None:
    """The subpackage that a module is in; None on the ground floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else None


FILES = {
    ".".join(("cocoseg", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}


def test_rooms_import_only_lower_floors():
    wrong = [
        f"{module} imports {other}"
        for module, path in FILES.items()
        for other in imports(path)
        if room(other) not in {None, room(module)}
        and room(other) not in (MAY_IMPORT.get(room(module) or "") or ENTRY_POINTS.get(path.stem, set()))
    ]
    assert not wrong


def test_data_takes_only_the_contract_of_networks():
    for module, path in FILES.items():
        if room(module) == "data":
            assert {other for other in imports(path) if room(other) == "networks"} <= OF_NETWORKS


def test_predictions_and_scores_need_no_torchvision():
    """It takes as long to import as torch."""
    at_once = re.compile("^(from|import) torchvision", re.MULTILINE)
    users = {module for module, path in FILES.items() if at_once.search(path.read_text())}
    assert users == {"cocoseg.data.extra_transforms"}  # of the training


def test_no_circle_between_files():
    edges = {module: {other for other in imports(path) if other in FILES} for module, path in FILES.items()}
    while free := [module for module, others in edges.items() if not others & edges.keys()]:
        for module in free:
            del edges[module]
    assert not edges


def test_every_room_says_what_it_is_and_re_exports_nothing():
    for name in MAY_IMPORT:
        [statement] = ast.parse((SOURCE / name / "__init__.py").read_text()).body
        assert isinstance(statement, ast.Expr)


def test_no_folder_is_crowded():
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    assert max(len(list(folder.glob("*.py"))) for folder in folders) <= MOST_MODULES


def test_no_module_has_the_name_of_a_public_function():
    assert not {"train", "prepare", "evaluate", "predict"} & {path.stem for path in SOURCE.glob("*.py")}
