"""Reading of a folder of images and a folder of their masks as one set."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cocoseg.config import DataConfig
from cocoseg.errors import CocosegError, count_of
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.mask_images.classes import found_classes, read_classes
from cocoseg.mask_images.convert import MaskItem, MaskSet, inspect
from cocoseg.mask_images.pairs import find_pairs, first
from cocoseg.mask_images.values import COLOR, color_value, show_value

# Most values without a class that an error describes, and most that it proposes for data.ignore.
MOST_SHOWN, MOST_IGNORED = 3, 40
LABEL_MAP = "labelmap.txt"  # CVAT's file of classes, beside its folder of masks


def read_mask_folder(
    image_dir: Path,
    mask_dir: Path,
    data: DataConfig,
    *,
    name: str = "train",
    known: Collection[int] = (),
    workers: int | None = None,
) -> MaskSet:
    """Pair images and masks, inspect them all, and find the class of every value.

    Args:
        data: suffixes, classes, ignored values, and the choice of classes.
        name: train, val or extra, for messages.
        known: values that are classes besides those found, where `data.classes` is not given.

    Raises:
        CocosegError: a file has no partner or can't be read, or a value belongs to no class.
    """
    given = None if data.classes is None else read_classes(data.classes)
    expanded = given is not None and any(value >= COLOR for value in given.category_of)
    pairs = find_pairs(image_dir, mask_dir, data, name)
    items = inspect(pairs, image_dir, mask_dir, expanded, data.exif, workers)
    uses = _uses(items)
    ignored = {value if isinstance(value, int) else color_value(value) for value in data.ignore}
    classes = given or found_classes({*known, *uses} - ignored)
    category_of = dict.fromkeys((0, COLOR)) | classes.category_of
    # A value of a class is not ignored. One of background is, where `data.ignore` lists it.
    category_of = {v: one for v, one in category_of.items() if one is not None or v not in ignored}
    if unknown := [value for value in uses if value not in ignored and value not in category_of]:
        raise CocosegError(_explain_unknown(unknown, uses, mask_dir, ignored))
    if not classes.categories:
        raise CocosegError(
            f"{mask_dir}: all pixels are 0 or ignored; where 255 is a class, as in masks of black and white, "
            "name it: 'data.classes=[{name: object, id: 255}]'"
        )
    labels = LabelMap.from_categories(classes.categories, data.subset.categories, data.labels)
    rest = IGNORE_INDEX if data.subset.other == "ignore" else 0
    table = dict.fromkeys(ignored, IGNORE_INDEX)
    for value, category in category_of.items():
        table[value] = 0 if category is None else labels.index_of.get(category, rest)
    facts = [f"ignored value {use}" for value, use in uses.items() if value not in category_of]
    return MaskSet(mask_dir, labels, items, table, expanded, facts)


def _uses(items: list[MaskItem]) -> dict[int, str]:
    """Describe each value of a set, the most frequent first: its pixels, and the masks that it occurs in."""
    pixels: Counter[int] = Counter()
    masks = defaultdict(list)
    for item in items:
        for value, count in item.values.items():
            pixels[value] += count
            masks[value].append(item.pair.mask)
    uses = {}
    for value, count in pixels.most_common():
        names = masks[value]
        place = f"{count_of(count, 'pixel')} in {count_of(len(names), 'mask')}: {first(names)}"
        uses[value] = f"{show_value(value)} ({place})"
    return uses


def _explain_unknown(
    unknown: Sequence[int], uses: Mapping[int, str], mask_dir: Path, ignored: Collection[int]
) -> str:
    shown, beside = show_value(unknown[0]), mask_dir.parent / LABEL_MAP
    example = f"[{{name: …, {'color' if unknown[0] >= COLOR else 'id'}: {shown}}}, …]"
    if unknown[0] >= COLOR and beside.is_file():
        example = str(beside)
    listed = ", ".join(uses[value] for value in unknown[:MOST_SHOWN]) + ", …" * (len(unknown) > MOST_SHOWN)
    noun = f"{'color' if unknown[0] >= COLOR else 'value'}{'s' * (len(unknown) > 1)}"
    ignore = ",".join(map(show_value, sorted({*ignored, *unknown[:MOST_IGNORED]})))
    return (
        f"{mask_dir}: {len(unknown)} {noun} of no class: {listed}; name them, 'data.classes={example}', or "
        f"ignore them, 'data.ignore=[{ignore}]'"
    )
