import functools
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

import cocoseg.cli  # noqa: F401  registers resolvers
from cocoseg.config import Config, EvaluateConfig
from cocoseg.config_checks import convert
from cocoseg.errors import CocosegError
from cocoseg.evaluation.training_settings import run_settings, use_training_data
from cocoseg.preparation.demo_shapes import draw_shapes
from cocoseg.preparation.prepare import prepare
from conftest import ROOT


@functools.cache
def presets(program: str, *chosen: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(program, list(chosen))


@functools.cache
def composed(program: str, *overrides: str) -> DictConfig:
    """Compose presets, then put in the values: Hydra takes a quarter of a second for each composition."""
    chosen = [override for override in overrides if override.startswith(("data=", "experiment="))]
    config = presets(program, *chosen).copy()
    for override in overrides:
        if override not in chosen:
            key, _, value = override.partition("=")
            with open_dict(config):
                OmegaConf.update(config, key, yaml.safe_load(value), merge=False)
    return config


@functools.cache
def written(*overrides: str) -> str:
    """Content of the `config.yaml` of a run."""
    return OmegaConf.to_yaml(composed("train", *overrides), resolve=True)


def write_run(folder: Path, *overrides: str) -> Path:
    """Write the folder of a run. Returns the path of its model."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(written(*overrides))
    return folder / "segmentation_model.pth"


def evaluation_of(model: Path, *overrides: str) -> DictConfig:
    """Settings of `evaluate.py checkpoint=<model>` with these overrides."""
    config = composed("evaluate", *overrides).copy()
    config.checkpoint = str(model)
    return use_training_data(config, [override.split("=")[0] for override in overrides])


SETTINGS = "data: {}\nmasks: {}\nseed: 0\n"
TRAINED = (
    "data=custom",
    "seed=7",
    "data.root=/data/mine",
    "data.images=/data/mine/photos",
    "data.annotations=/data/mine/all.json",
    "data.val_images=/elsewhere/photos",
    "data.val_annotations=/elsewhere/val.json",
    "data.image_size=[48,64]",
    "data.subset.categories=[dog,3]",
    "data.labels={animal: [dog,3]}",
    "data.batch_size=3",
    "masks.overlap=smallest",
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", *TRAINED)


def test_the_data_are_those_of_the_run(model: Path) -> None:
    config = evaluation_of(model)
    expected = composed("train", *TRAINED)
    assert (config.seed, config.masks) == (7, expected.masks)
    for key in expected.data:
        if key not in ("batch_size", "num_workers"):  # these depend on the machine
            assert config.data[key] == expected.data[key], key
    assert config.data.batch_size == 16
    convert(OmegaConf.to_container(config, resolve=True), EvaluateConfig)


def test_extra_training_images_are_left_out(tmp_path: Path) -> None:
    extra = "data.extra=[{images: more, annotations: more.json}]"
    for typed in ((), (extra,), ("data=custom", extra)):
        model = write_run(tmp_path / f"run{len(typed)}", *TRAINED, extra)
        assert evaluation_of(model, *typed).data.extra == []


def test_settings_are_found_for_a_checkpoint_one_folder_deeper(model: Path) -> None:
    assert evaluation_of(model.parent / "checkpoints/last.ckpt").data.annotations == "/data/mine/all.json"


def test_typed_settings_override_those_of_the_run(model: Path) -> None:
    config = evaluation_of(model, "seed=8", "data.val_fraction=0.5", "data.subset.seed=2", "masks.crowd=skip")
    assert (config.seed, config.data.val_fraction, config.data.subset.seed) == (8, 0.5, 2)
    assert (config.masks.crowd, config.masks.overlap) == ("skip", "smallest")
    assert config.data.subset.categories == ["dog", 3]


def test_a_typed_root_moves_the_paths_below_it(model: Path) -> None:
    config = evaluation_of(model, "data.root=/moved")
    assert (config.data.images, config.data.annotations) == ("/moved/photos", "/moved/all.json")
    assert config.data.val_annotations == "/elsewhere/val.json"


def test_a_typed_root_moves_masks_and_the_file_of_their_classes(tmp_path: Path) -> None:
    places = ("data.images=/old/i", "data.masks=/old/m", "data.classes=/old/labelmap.txt")
    data = evaluation_of(
        write_run(tmp_path / "run", "data=masks", "data.root=/old", *places), "data.root=/new"
    ).data
    assert (data.images, data.masks, data.classes) == ("/new/i", "/new/m", "/new/labelmap.txt")


def test_other_masks_are_read_as_those_of_the_run(tmp_path: Path) -> None:
    files = ("data.root=/old", "data.images=/old/i", "data.masks=/old/m", "data.classes=[background,cat]")
    val = ("data.val_images=/old/v", "data.val_masks=/old/w")
    model = write_run(tmp_path / "run", "data=masks", *files, *val, "data.val_fraction=0.3", "seed=7")
    typed = "data.images=/new/i", "data.masks=/new/m"
    config = evaluation_of(model, *typed)
    data = config.data
    assert (data.images, data.masks, data.classes) == ("/new/i", "/new/m", ["background", "cat"])
    assert (data.annotations, data.root, data.val_images, data.val_masks) == (None,) * 4
    assert (data.val_fraction, config.seed, data.subset.size) == (0.3, 7, None)
    assert evaluation_of(model, *typed, "data.val_masks=/x", "data.val_images=/y").data.val_masks == "/x"
    config = evaluation_of(model, "data=masks", *typed)  # all settings are those of the preset
    assert (config.data.classes, config.seed) == (None, 0)


def test_masks_for_a_run_of_annotations_are_other_data(model: Path) -> None:
    typed = "data.images=/new/i", "data.masks=/new/m"
    assert evaluation_of(model, *typed).data == composed("evaluate", *typed).data


def test_a_root_that_moves_nothing_is_refused(tmp_path: Path) -> None:
    model = write_run(tmp_path / "run", "data=custom", "data.images=/a/photos", "data.annotations=/a/b.json")
    with pytest.raises(
        CocosegError, match=r"data\.root moves nothing: .*data\.images=/a/photos .*give these"
    ):
        evaluation_of(model, "data.root=/moved")


def test_other_settings_of_masks_are_a_warning(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluation_of(model, "data.images=/i", "data.annotations=/a.json")
    assert "trained with masks.overlap=smallest; " in caplog.text
    caplog.clear()
    evaluation_of(model, "data.images=/i", "data.annotations=/a.json", "masks.overlap=smallest", "split=all")
    assert caplog.text == ""


def test_a_split_of_other_data_that_is_not_typed_is_named(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A test set of which a tenth is scored looks scored."""
    others = ("data=custom", "data.images=/i", "data.annotations=/a.json", "masks.overlap=smallest")
    validation = ("data.val_images=/v", "data.val_annotations=/b.json")
    for typed in ((), (*others, "split=val"), (*others, "split=all"), (*others, *validation)):
        evaluation_of(model, *typed)
        assert caplog.text == ""
    evaluation_of(model, *others)
    assert "split=val scores a share of 0.1 (data.val_fraction) of these images; split=all" in caplog.text


@pytest.mark.parametrize(
    "override", ["data=shapes", "experiment=demo", "data.images=/i", "data.annotations=/a.json"]
)
def test_with_other_data_no_setting_of_the_run_is_used(model: Path, override: str) -> None:
    config, plain = evaluation_of(model, override), composed("evaluate", override)
    assert (config.seed, config.data, config.masks) == (plain.seed, plain.data, plain.masks)


@pytest.mark.parametrize(
    ("overrides", "keeps"),
    [
        (("data.images=/i", "split=all"), True),  # these images show false alarms
        (("data.images=/i", "split=all", "data.subset.keep_empty=false"), False),
        (("data.images=/i", "split=train"), False),  # the split must be that of the training
        (("data=custom", "split=val"), True),
        (("split=all",), False),
    ],
)
def test_images_without_annotations_are_kept_for_split_all(
    tmp_path: Path, overrides: tuple[str, ...], keeps: bool
) -> None:
    config = evaluation_of(write_run(tmp_path / "run", "data=coco"), *overrides)
    assert config.data.subset.keep_empty is keeps


def test_shapes_of_a_run_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a demo may have drawn others in the checkout
    config = evaluation_of(write_run(tmp_path / "run", "data=shapes", "data.shapes.images=12"))
    assert config.data.shapes.images == 12


@pytest.mark.parametrize("content", ["a: 1\n", "- 1\n", "", "model: ${oc.env:HOME}\n"])
def test_another_config_file_holds_no_settings_of_a_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    assert run_settings(str(tmp_path / "model.pth")) is None


def with_data(folder: Path, shapes_root: Path, *overrides: str) -> Path:
    """Write the folder of a run on the data set of shapes. Returns the path of its model."""
    files = f"data.images={shapes_root}/images", f"data.annotations={shapes_root}/annotations/instances.json"
    return write_run(folder, "data=custom", *files, *overrides)


def test_a_run_does_not_choose_where_masks_are_written(tmp_path: Path, shapes_root: Path) -> None:
    place = tmp_path / "another_data_set"
    model = with_data(tmp_path / "run", shapes_root, f"data.prepared_dir={place}")
    assert evaluation_of(model).data.prepared_dir is None
    assert evaluation_of(model, f"data.prepared_dir={place}").data.prepared_dir == str(place)


def test_the_prepared_folder_of_a_run_is_used(tmp_path: Path, shapes_root: Path) -> None:
    model = with_data(tmp_path / "run", shapes_root, f"data.prepared_dir={tmp_path}/prepared")
    settings = OmegaConf.load(model.with_name("config.yaml"))
    prepare(convert(OmegaConf.to_container(settings), Config))
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    config = evaluation_of(model)
    assert config.data.prepared_dir == f"{tmp_path}/prepared"
    prepare(convert(OmegaConf.to_container(config, resolve=True), EvaluateConfig))
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    assert evaluation_of(model, "masks.crowd=skip").data.prepared_dir is None


def test_a_run_without_a_prepared_folder_is_not_looked_at(
    tmp_path: Path, shapes_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Config] = []
    monkeypatch.setattr("cocoseg.evaluation.training_settings.is_prepared", looks.append)
    assert evaluation_of(with_data(tmp_path / "run", shapes_root)).data.prepared_dir is None
    assert looks == []


def test_a_run_does_not_choose_where_shapes_are_drawn(tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    shapes = "data=shapes", "data.shapes.images=2", f"data.root={root}"
    model = write_run(tmp_path / "run", *shapes)
    with pytest.raises(CocosegError, match=r"data\.root: the shapes that .* name a folder to draw them in"):
        evaluation_of(model)
    assert not root.exists()
    assert evaluation_of(model, f"data.root={tmp_path}/typed").data.shapes.images == 2
    draw_shapes(root, images=2, seed=0)
    assert evaluation_of(model).data.shapes is None  # the shapes exist, so nothing is drawn
    draw_shapes(root, images=3, seed=0)
    with pytest.raises(CocosegError, match=r"data\.root: the shapes that "):
        evaluation_of(model)


def test_shapes_at_the_usual_place_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_run(tmp_path / "run", "data=shapes", "data.shapes.images=2")
    assert evaluation_of(model).data.shapes.images == 2
    draw_shapes(Path("data/shapes"), images=3, seed=0)
    with pytest.raises(CocosegError, match=r"data\.root: the shapes that .* data/shapes any more"):
        evaluation_of(model)


def test_a_model_without_a_run_has_no_settings(tmp_path: Path) -> None:
    assert run_settings(str(tmp_path / "model.pth")) is None


@pytest.mark.parametrize(
    "content",
    [
        "seed: 0\nmasks: {}\ndata:\n  root: ${oc.env:HOME}\n",  # would read an environment variable
        "data: [unclosed\n",
        "seed: 0\nmasks: 1\ndata: {}\n",
        "data: !!python/object/apply:os.system [ls]\n",
        "\x00",
        SETTINGS + "a: &a [x, x]\nb: [*a, *a]\n",
        SETTINGS + "a: &a {x: 1}\nb: {<<: *a}\n",
        SETTINGS + "a: &a [*a]\n",
        SETTINGS + "a: " + "[" * 60 + "]" * 60,
        SETTINGS + "a: " + "[" * 50_000,
        SETTINGS + "a: [" + "1, " * 100_000 + "1]",
        SETTINGS + "a: " + "9" * 100_000,
        SETTINGS + "a: !!python/name:os.system\n",
    ],
)
@pytest.mark.timeout(120)
def test_a_damaged_or_malicious_config_file_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(CocosegError, match=r"config\.yaml: the settings of the run can't be read"):
        run_settings(str(tmp_path / "model.pth"))


def test_a_damaged_config_file_does_not_matter_with_other_data(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: [unclosed\n")
    config = evaluation_of(tmp_path / "model.pth", "data=shapes")
    assert config.data == composed("evaluate", "data=shapes").data


def test_settings_of_another_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\nmasks: {}\ndata:\n  unheard_of: 1\n")
    with pytest.raises(CocosegError, match=r"don't fit .*unheard_of.*; give data="):
        evaluation_of(tmp_path / "model.pth")


def test_removed_keys_of_an_older_version_are_left_out(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = model.parent / "config.yaml"
    content = OmegaConf.load(path)
    OmegaConf.update(content, "data.sampling", "uniform", force_add=True)
    path.write_text(OmegaConf.to_yaml(content))
    with caplog.at_level("INFO"):
        config = evaluation_of(model)
    assert caplog.text.count("data.sampling: no settings any more, left out") == 1
    assert "sampling" not in config.data
    assert config.data.image_size == [48, 64]
