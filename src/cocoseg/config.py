"""Declarations of our own settings: name, type, choices or range, default and one line of help of each.

config_checks.py checks a composed configuration against them, config_help.py makes `--help` and
docs/settings.md from them, and conf/ holds the same keys with the same defaults. Parts that users swap as a
whole (model, loss, optimizer, trainer, logger, callbacks) are untyped nodes with a `_target_`. No torch, no
Hydra.

The first text in an `Annotated` is the line of help. A second one says which values are allowed, where the
type does not say enough.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from msgspec import Meta, Struct, field

from cocoseg.durations import SLURM, Duration, parse_duration, parse_moment

COCO_ANNOTATIONS = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
DEFAULT_ROOT = "data/coco"  # data.root of data=coco; prepare.py fetches into it without being asked
SHAPES_ROOT = "data/shapes"  # data.root of data=shapes
AUTO: Final = "auto"
NAMED = ("logger", "callbacks")  # nodes that hold parts by names of the user's choice
DEFAULT_WEIGHTS = "default"  # value of model.weights: the weights that timm has for the encoder

Overlap = Literal["max", "smallest", "ignore"]
OVERLAPS = get_args(Overlap)

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, le=1)]
FULL_BITS = 16  # assumed where pixels have more than 8 bits and nothing tells how many
Bits = Annotated[int, Meta(ge=1, le=31)]
Share = Annotated[float, Meta(gt=0, lt=1)]
Pair = Meta(min_length=2, max_length=2)
Size = Annotated[list[Positive], Pair]
SIDES = "[height, width] in pixels, or one number for both"
Group = Annotated[list[int | str], Meta(min_length=1)]
GroupName = Annotated[str, Meta(pattern=r"^(?!background$).")]
FolderName = Annotated[str, Meta(pattern=r"^\w[\w.+-]*(/\w[\w.+-]*)*$")]
Node = dict[str, Any] | None  # untyped: a `_target_` and its arguments
Text = str | None


def as_pair(size: Sequence[int]) -> tuple[int, int]:
    """Turn a sequence of height and width, such as a list or a shape, into a tuple."""
    height, width = size
    return height, width


class Settings(Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of all groups of settings; attributes can be set. A leading `~` becomes the home folder."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, str) and value.startswith("~"):
                setattr(self, name, os.path.expanduser(value))  # noqa: PTH111  leaves ~nobody as it is


class SubsetConfig(Settings, kw_only=True):
    """Choice of images from the file; data=custom, train_val and masks take all of them."""

    size: Annotated[Positive | None, "number of images; null: all"] = 8000
    seed: Annotated[int, "seed of the choice; with one seed a smaller choice is part of a larger one"] = 0
    categories: Annotated[
        list[int | str] | Literal["things", "stuff"] | None,
        "classes to use; null: all",
        "a list of names or ids, as in [dog, 18], things, stuff, or null",
    ] = None
    other: Annotated[Literal["background", "ignore"], "pixels of objects without a class"] = "background"
    keep_empty: Annotated[bool, "keep images without these classes; validation files keep theirs"] = False
    min_pixels: Annotated[NotNegative, "leave out images with fewer annotated pixels"] = 0


class ShapesConfig(Settings, kw_only=True):
    """The built-in data set of drawn shapes (data=shapes)."""

    images: Annotated[int, Meta(ge=2), "number of images to draw"] = 240
    seed: Annotated[NotNegative, "seed of the drawing"] = 0


class ExtraConfig(Settings, kw_only=True):
    """An entry of `data.extra`, with `annotations` or `masks`; `weight` is a factor of its images' loss."""

    images: str
    annotations: Text = None
    masks: Text = None
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0


class DataConfig(Settings, kw_only=True):
    """Images, annotations and their way to the network."""

    own: Annotated[
        Node, "your own data set, in place of data.images", "a class, as in my_package.Dataset, or null"
    ] = field(default=None, name="_target_")
    root: Annotated[Text, "folder of the data set"] = None
    images: Annotated[Text, "folder of the images"] = None
    annotations: Annotated[Text, "COCO instances, panoptic or stuff file"] = None
    val_images: Annotated[Text, "folder of the validation images; null: data.images"] = None
    val_annotations: Annotated[Text, "their COCO file; null: data.val_fraction of data.images"] = None
    extra: Annotated[
        list[ExtraConfig],
        "further training images; their loss is multiplied by their weight",
        "a list, as in [{images: a, annotations: b.json, weight: 2}] or [{images: a, masks: b}], weight > 0",
    ] = []
    masks: Annotated[Text, "folder of mask images, in place of annotations (data=masks)"] = None
    val_masks: Annotated[Text, "folder of the masks of the validation images"] = None
    image_suffix: Annotated[Text, "end of image names (_leftImg8bit) before the dot; null: detected"] = None
    mask_suffix: Annotated[Text, "end of mask names (_labelIds) before the dot; null: detected"] = None
    classes: Annotated[
        list[Any] | str | None,
        "classes of mask images, each a name, or a name with id or color; null: detected",
        "a list, as in [background, cat] or [{name: cat, id: 7}], the path of a file, or null",
    ] = None
    ignore: Annotated[
        list[int | Annotated[list[int], Meta(min_length=3, max_length=3)]],
        "values of mask images that are neither trained on nor scored",
        "a list of numbers and colors, as in [255,[0,0,0]]",
    ] = field(default_factory=lambda: [255, [224, 224, 192]])  # the color: void of PASCAL VOC
    file_names: Annotated[
        Literal["exact", "similar"], "similar: image files may differ from the list in case, ending, folder"
    ] = "exact"
    prepared_dir: Annotated[Text, "folder of label masks; null: prepared/<file>-<hash of settings>"] = None
    image_size: Annotated[Size, "height and width that the network sees", SIDES] = field(
        default_factory=lambda: [224, 224]
    )
    batch_size: Annotated[Positive | Literal["auto"], "images per step; auto: as many as fit the GPU"] = 16
    num_workers: Annotated[NotNegative | None, "processes that load images; null: as needed"] = None
    exif: Annotated[
        Literal["auto", "apply", "ignore"], "turn images by their EXIF rotation; auto: as the annotations fit"
    ] = AUTO
    bits: Annotated[Literal["auto"] | Bits, "bits used where images have more than 8; auto: detected"] = AUTO
    cache: Annotated[bool, "decode and resize images once, into arrays beside the masks"] = True
    cache_size: Annotated[
        Size | None,
        "size of training images before augment.scale crops them; null: image_size",
        f"{SIDES}, no smaller than data.image_size, or null for that size",
    ] = None
    val_fraction: Annotated[Share, "share of the images that is held out for validation"] = 0.1
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    labels: Annotated[
        Literal["all", "supercategories"] | Annotated[dict[GroupName, Group], Meta(min_length=1)],
        "classes: one per category, per supercategory, or per group",
        "all, supercategories, or groups as in {vehicle: [car, bus], …}, none of them named background",
    ] = "all"
    download: Annotated[bool | None, "prepare.py fetches what is missing; null: into data/coco only"] = None
    annotations_url: Annotated[Text, "zip that holds annotations/<file>, or the file itself"] = (
        COCO_ANNOTATIONS
    )
    images_url: Annotated[Text, "folder of a mirror; null: each image's own coco_url"] = None
    max_image_bytes: Annotated[Positive, "larger images are not fetched"] = 64 * 2**20
    shapes: Annotated[ShapesConfig | None, "draw the data set at data.root first"] = None

    @property
    def fetches(self) -> bool:
        """True where prepare.py fetches what is missing."""
        if self.download is not None or self.shapes is not None:
            return bool(self.download) and self.shapes is None
        places = (self.images, self.annotations, self.val_images, self.val_annotations)
        return self.masks is None and all(
            Path(place).is_relative_to(DEFAULT_ROOT) for place in places if place is not None
        )


class MasksConfig(Settings, kw_only=True):
    """Drawing and files of label masks."""

    overlap: Annotated[Overlap, "class of pixels where objects overlap; max: the higher category id"] = "max"
    rasterizer: Annotated[Literal["pillow", "coco"], "code that fills polygons; coco: pycocotools"] = "pillow"
    crowd: Annotated[
        Literal["ignore", "draw", "skip"], "crowd regions; ignore: neither trained on nor scored"
    ] = "ignore"
    encoding: Annotated[
        Literal["palette", "uint16", "x100"], "pixel value: category id in 8 bits, in 16, or times 100 in 16"
    ] = "palette"


class AugmentConfig(Settings, kw_only=True):
    """Random changes to training images, 0: off."""

    flip: Annotated[Probability, "probability of mirroring left to right"] = 0.0
    scale: Annotated[
        list[Annotated[float, Meta(ge=0.05, le=20)]],
        Pair,
        "random zoom: 0.5 shows the image at half its size, 2.0 crops a quarter of it",
        "[least, most], as in [0.5, 2.0], within 0.05 … 20",
    ] = field(default_factory=lambda: [1.0, 1.0])
    rotate: Annotated[float, Meta(ge=0, le=180), "degrees at most, either way"] = 0.0
    brightness: Annotated[Probability, "a factor of 1 ± this at most"] = 0.0
    contrast: Annotated[Probability, "a factor of 1 ± this at most"] = 0.0
    saturation: Annotated[Probability, "a factor of 1 ± this at most"] = 0.0
    hue: Annotated[float, Meta(ge=0, le=0.5), "shift by this share of the color wheel at most"] = 0.0
    greyscale: Annotated[Probability, "probability of gray images"] = 0.0
    blur: Annotated[Probability, "probability of blurred images"] = 0.0
    cutout: Annotated[Probability, "probability of a rectangle that is neither seen nor scored"] = 0.0
    class_mix: Annotated[Probability, "probability of pasting in half of another image's classes"] = 0.0
    extra: Annotated[
        list[dict[str, Any]],
        "further transforms, one image at a time, before those above",
        "a list, as in [{_target_: torchvision.transforms.v2.RandomPerspective}]",
    ] = []
    start_size: Annotated[
        float, Meta(ge=0.1, le=1), "share of image_size at which training begins; 1 from 0.6 of the run on"
    ] = 1.0


class PrepareConfig(Settings, kw_only=True):
    """Preparation of the masks."""

    workers: Annotated[Positive | None, "processes that draw masks; null: one per core"] = None


class ScheduleConfig(Settings, kw_only=True):
    """Learning rate over the run's progress."""

    own: Annotated[
        Node,
        "your own function in place of name: progress 0 … 1 -> factor of optimizer.lr",
        "a function, as in my_package.poly, or null",
    ] = field(default=None, name="_target_")
    name: Annotated[
        Literal["linear", "cosine", "trapezoid", "constant"], "shape after warm-up; all but constant end at 0"
    ] = "linear"
    warmup: Annotated[float, Meta(ge=0, lt=1), "share of the run in which the rate rises"] = 0.02
    cooldown: Annotated[
        float, Meta(gt=0, le=1), "share of the run in which a trapezoid falls, at most 1 - warmup"
    ] = 0.3


class FinetuneConfig(Settings, kw_only=True):
    """Training of an encoder that begins with weights."""

    frozen: Annotated[Probability, "share of the run in which the encoder is not trained"] = 0.0
    encoder_lr: Annotated[float, Meta(gt=0, le=1000), "factor of optimizer.lr for the encoder"] = 1.0


class BudgetConfig(Settings, kw_only=True):
    """Use of the time of trainer.max_time."""

    validation_share: Annotated[Share, "share of the time for validations and what they save"] = 0.1
    checkpoint_every: Annotated[Duration, "time between checkpoints"] = Duration(minutes=5)
    extend: Annotated[Duration | None, "time to add to the limit, once until the run has ended"] = None
    until: Annotated[
        Text,
        "time by which this start of the run must have ended; slurm: end of the Slurm job",
        "a time of day or a date and a time, as in 18:00 or 2026-11-27 06:00, slurm, or null",
    ] = None


class SweepConfig(Settings, kw_only=True):
    """A search for good settings within one time limit; sweep=tpe, random or grid begins one."""

    method: Annotated[Literal["tpe", "random", "grid"] | None, "set by sweep=…"] = None
    space: Annotated[
        dict[str, Any], "settings to search", 'keys and values, as in {model.depth: "2,3,4"}'
    ] = {}
    trials: Annotated[Positive | None, "number of runs; time that is left of total_time buys more"] = None
    total_time: Annotated[Duration | None, "time limit of the whole sweep"] = None
    name: Annotated[
        FolderName | None,
        "folder of the sweep; null: named by the command, which resumes it when given again",
        "a folder name of letters, digits and . _ + -, or null",
    ] = None
    pruner: Annotated[
        Literal["none", "median", "halving", "hyperband"], "rule that ends poor trials early"
    ] = "none"
    trial: Annotated[NotNegative | None, "number of a sweep's run; set by the sweep"] = None


class Config(Settings, kw_only=True):
    """A run of train.py or prepare.py."""

    seed: Annotated[int, Meta(ge=0, lt=2**32), "seed of split, weights, order and augmentation"] = 0
    run_dir: Annotated[str, "folder of the run"] = "outputs"
    tags: Annotated[list[str], "words to find the run by", "words, as in [baseline, night]"] = []
    ckpt_path: Annotated[Text, "checkpoint (.ckpt) to resume training from"] = None
    resume: Annotated[Literal["auto"] | None, "auto: resume the run in run_dir, or begin one there"] = None
    from_run: Annotated[Text, "folder of a run to take settings from; typed ones replace them"] = None
    data: DataConfig = field(default_factory=DataConfig)
    masks: MasksConfig = field(default_factory=MasksConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: Annotated[Node, "network"] = None
    compile: Annotated[bool, "compile the network by torch.compile for training"] = False
    loss: Annotated[Node, "loss"] = None
    optimizer: Annotated[Node, "optimizer"] = None
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    trainer: Annotated[dict[str, Any], "Lightning's Trainer"] = {}
    logger: Annotated[
        Node, "loggers, as in logger=[tensorboard,csv]", "names that map to a _target_ each, or null"
    ] = None
    callbacks: Annotated[
        dict[str, Any],
        "more callbacks, as in callbacks.mine._target_=package.Class",
        "names that map to a _target_ each",
    ] = {}
    export: Annotated[
        list[Literal["pth", "onnx", "torch_export"]], "model files to write at the end; pth is always written"
    ] = field(default_factory=lambda: ["pth"])
    export_resize: Annotated[bool, "onnx and torch_export files resize images, as predict.py does"] = False

    @property
    def time_limit(self) -> timedelta | None:
        """`trainer.max_time`, the wall-clock limit of the run; None also where Slurm sets it."""
        limit = self.trainer.get("max_time")
        return None if limit == SLURM else parse_duration(limit, key="trainer.max_time")

    @property
    def deadline(self) -> float | None:
        """Moment at which this start of the run must have ended, in seconds since 1970, or None."""
        given = {"budget.until": self.budget.until}
        if self.trainer.get("max_time") == SLURM:
            given["trainer.max_time"] = SLURM
        moments = [parse_moment(value, key=key) for key, value in given.items() if value is not None]
        return min(moments, default=None)


class EvaluateConfig(Config, kw_only=True):
    """An evaluation by evaluate.py, which takes every setting of train.py too."""

    checkpoint: Annotated[Text, "segmentation_model.pth, a .ckpt or an exported .onnx file"] = None
    split: Annotated[Literal["val", "train", "all"], "images to score; val: held out of training"] = "val"
    score_at: Annotated[
        Literal["original", "network"], "original: at each image's own size, and at the network's too"
    ] = "original"
    tta: Annotated[bool, "also score the average with the mirror image"] = False
    save_predictions: Annotated[bool, "write predicted masks as predictions/<image>.png"] = False
    gallery: Annotated[bool, "gallery.html: all images to look through, the worst first"] = True
    network: Annotated[Text, "class of a network of your own, as in my.package.Net"] = None


class PredictConfig(Settings, kw_only=True):
    """A prediction by predict.py."""

    checkpoint: Annotated[Text, "segmentation_model.pth, a .ckpt or an exported .onnx file"] = None
    input: Annotated[Text, "an image, a folder with all below it, or a pattern"] = None
    output: Annotated[str, "folder of the results; images that are predicted there are skipped"] = "outputs"
    values: Annotated[Literal["category_id", "index"], "pixel value of a predicted mask"] = "category_id"
    overlay: Annotated[bool, "overlays/: images under their masks, with a legend"] = True
    gallery: Annotated[bool, "gallery.html: all images to look through"] = True
    probabilities: Annotated[
        Literal["all"] | bool,
        "true: confidence/, probability of the class in the mask; all: probabilities/, too",
        "true, false or all",
    ] = False
    coco_dataset: Annotated[
        Literal["rle", "polygon"] | None, "write coco_dataset.json, a data set to train on, and confidence/"
    ] = None
    min_score: Annotated[Probability, "least mean confidence of a region in coco_dataset.json"] = 0.0
    min_area: Annotated[NotNegative, "least number of pixels of a region in coco_dataset.json"] = 0
    below: Annotated[
        Literal["ignore", "background"], "regions below min_score or min_area; ignore: marked as iscrowd"
    ] = "ignore"
    coco_json: Annotated[bool, "coco_results.json: an encoded mask per image and class"] = False
    annotations: Annotated[Text, "COCO file that gives image ids; null: numbered from 1"] = None
    scale: Annotated[
        Annotated[float, Meta(ge=0.01, le=100)] | None,
        "size at the network as a factor of the image's own; null: as in training",
    ] = None
    tile: Annotated[
        Literal["auto"] | bool | Annotated[list[Annotated[int, Meta(ge=64)]], Pair],
        "overlapping tiles: where the image is large, never, or always of this size",
        "auto, false, or [height, width] from 64 pixels up",
    ] = AUTO
    flip: Annotated[bool, "average with the mirror image"] = False
    batch_size: Annotated[Positive, "images at a time"] = 8
    accelerator: Annotated[Literal["auto", "cpu", "gpu", "mps"], "device"] = AUTO
    precision: Annotated[
        Literal["auto", "32-true", "bf16-mixed", "16-mixed"],
        "auto: bf16-mixed where the device has it, else 32-true",
    ] = AUTO
    workers: Annotated[Positive | None, "decoding processes and writing threads; null: one per core"] = None
    network: Annotated[Text, "class of a network of your own, as in my.package.Net"] = None

    @property
    def confidence(self) -> Literal["all"] | bool:
        """`probabilities`, but never False where the scores of coco_dataset.json need the confidence."""
        return self.probabilities or self.coco_dataset is not None


# The settings of each program; their defaults are in <program>.yaml of `conf_folder()`.
PROGRAMS: dict[str, type[Settings]] = {
    "train": Config,
    "prepare": Config,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
}


def conf_folder() -> Path:
    """The absolute path of conf/: inside the package in a wheel (setup.py), at the top of a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"
