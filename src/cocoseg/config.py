"""Declarations of our own settings: name, type, choices or range, default and one line of help of each.

settings.py checks a composed configuration against them, manual.py makes `--help` and docs/settings.md from
them, and conf/ holds the same keys with the same defaults. Parts that users swap as a whole (model, loss,
optimizer, trainer, logger, callbacks) are untyped nodes with a `_target_`. No torch, no Hydra.
"""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Struct, field

from cocoseg.durations import Duration, parse_duration

COCO_ANNOTATIONS = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
DEFAULT_ROOT = "data/coco"  # data.root of data=coco; prepare.py fetches into it without being asked
AUTO = "auto"
IMAGENET = ("IMAGENET1K_V1", "IMAGENET1K_V2")  # torchvision's names of weights

Overlap = Literal["max", "smallest", "ignore"]
OVERLAPS = get_args(Overlap)

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Share = Annotated[float, Meta(gt=0, lt=1)]
Pair = Meta(min_length=2, max_length=2)
Size = Annotated[list[Positive], Pair, Meta(extra_json_schema={"allowed": "[height, width] in pixels"})]
GroupName = Annotated[str, Meta(pattern=r"^(?!background$).")]
Node = dict[str, Any] | None  # untyped: a `_target_` and its arguments
Text = str | None


def says(allowed: str) -> Meta:
    """A declaration's values in words, where its type alone does not say enough."""
    return Meta(extra_json_schema={"allowed": allowed})


def means(description: str) -> Meta:
    """The one line of help of a setting."""
    return Meta(description=description)


class Settings(Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of all groups of settings; attributes can be set."""


class SubsetConfig(Settings, kw_only=True):
    """Choice of images from the annotation file."""

    size: Annotated[Positive | None, means("number of images; null: all")] = 8000
    seed: Annotated[int, means("seed of the choice; 2,000 images are part of the 4,000 of the same seed")] = 0
    categories: Annotated[
        list[int | str] | None,
        means("classes to use, on images that show one of them; null: all"),
        says("a list of names or ids, as in [dog, 18], or null"),
    ] = None
    other: Annotated[Literal["background", "ignore"], means("pixels of objects that belong to no class")] = (
        "background"
    )
    keep_empty: Annotated[bool, means("use images without annotations too")] = False
    min_pixels: Annotated[NotNegative, means("leave out images with a smaller annotated area")] = 0


class ShapesConfig(Settings, kw_only=True):
    """The built-in data set of drawn shapes (data=shapes)."""

    images: Annotated[int, Meta(ge=2), means("number of images to draw")] = 240
    seed: Annotated[NotNegative, means("seed of the drawing")] = 0


class DataConfig(Settings, kw_only=True):
    """Images, annotations and their way to the network."""

    root: Annotated[Text, means("folder of the data set")] = None
    images: Annotated[Text, means("folder of the images")] = None
    annotations: Annotated[Text, means("COCO instances file")] = None
    val_images: Annotated[Text, means("folder of the validation images; null: data.images")] = None
    val_annotations: Annotated[Text, means("their instances file; null: data.val_fraction of the images")] = (
        None
    )
    prepared_dir: Annotated[
        Text, means("folder of the label masks; null: prepared/<file>-<key of settings>")
    ] = None
    image_size: Annotated[Size, means("height and width that the network sees")] = field(
        default_factory=lambda: [224, 224]
    )
    batch_size: Annotated[
        Positive | Literal["auto"], means("images per step; auto: the largest power of two that fits the GPU")
    ] = 16
    num_workers: Annotated[
        NotNegative | None, means("processes that load images; null: as many as cache and device need")
    ] = None
    cache: Annotated[bool, means("decode and resize images once, into arrays beside the masks")] = True
    cache_size: Annotated[
        Size | None,
        means("size of training images before augment.scale crops them; null: image_size"),
        says("[height, width] in pixels, no smaller than data.image_size, or null for that size"),
    ] = None
    val_fraction: Annotated[Share, means("share of the images that is held out for validation")] = 0.1
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    labels: Annotated[
        Literal["all", "supercategories"]
        | Annotated[dict[GroupName, Annotated[list[int | str], Meta(min_length=1)]], Meta(min_length=1)],
        means("classes: one per category, per supercategory, or per group"),
        says("all, supercategories, or groups as in {vehicle: [car, bus], …}, none of them named background"),
    ] = "all"
    download: Annotated[
        bool | None, means("prepare.py fetches what is missing; null: into data/coco only")
    ] = None
    annotations_url: Annotated[Text, means("zip that holds annotations/<file>, or the file itself")] = (
        COCO_ANNOTATIONS
    )
    images_url: Annotated[Text, means("folder of a mirror; null: each image's own coco_url")] = None
    max_image_bytes: Annotated[Positive, means("larger images are not fetched")] = 64 * 2**20
    shapes: Annotated[ShapesConfig | None, means("draw the data set at data.root first")] = None

    @property
    def fetches(self) -> bool:
        """Whether prepare.py fetches what is missing."""
        if self.download is not None or self.shapes is not None:
            return bool(self.download) and self.shapes is None
        places = (self.images, self.annotations, self.val_images, self.val_annotations)
        return all(Path(place).is_relative_to(DEFAULT_ROOT) for place in places if place is not None)


class MasksConfig(Settings, kw_only=True):
    """Drawing and files of label masks."""

    overlap: Annotated[Overlap, means("owner of overlapping pixels; max: the higher category id")] = "max"
    rasterizer: Annotated[
        Literal["pillow", "coco"], means("how polygons are filled; coco: as COCO's own evaluation does")
    ] = "pillow"
    crowd: Annotated[
        Literal["ignore", "draw", "skip"], means("crowd regions; ignore: neither trained on nor scored")
    ] = "ignore"
    encoding: Annotated[
        Literal["palette", "uint16", "x100"],
        means("pixel of a mask: category id in 8 bits, 16 bits, or times 100"),
    ] = "palette"


class AugmentConfig(Settings, kw_only=True):
    """Random changes to training images, 0: off."""

    flip: Annotated[Probability, means("probability of mirroring left to right")] = 0.0
    scale: Annotated[
        list[Annotated[float, Meta(ge=0.05, le=20)]],
        Pair,
        means("random zoom: 0.5 shows the image at half its size, 2.0 crops a quarter of it"),
        says("[least, most], as in [0.5, 2.0], within 0.05 … 20"),
    ] = field(default_factory=lambda: [1.0, 1.0])
    rotate: Annotated[float, Meta(ge=0, le=180), means("degrees at most, either way")] = 0.0
    brightness: Annotated[Probability, means("a factor of 1 ± this at most")] = 0.0
    contrast: Annotated[Probability, means("a factor of 1 ± this at most")] = 0.0
    saturation: Annotated[Probability, means("a factor of 1 ± this at most")] = 0.0
    hue: Annotated[float, Meta(ge=0, le=0.5), means("shift by this share of the color wheel at most")] = 0.0
    greyscale: Annotated[Probability, means("probability of gray images")] = 0.0
    blur: Annotated[Probability, means("probability of blurred images")] = 0.0
    cutout: Annotated[Probability, means("probability of a rectangle that is neither seen nor scored")] = 0.0
    class_mix: Annotated[
        Probability, means("probability of half of another image's classes pasted over this one")
    ] = 0.0
    start_size: Annotated[
        float,
        Meta(ge=0.1, le=1),
        means("share of image_size at which training begins; full from 0.6 of the run on"),
    ] = 1.0


class PrepareConfig(Settings, kw_only=True):
    """Preparation of the masks."""

    workers: Annotated[Positive | None, means("processes that draw masks; null: one per core")] = None


class ScheduleConfig(Settings, kw_only=True):
    """Learning rate over the run's progress."""

    name: Annotated[
        Literal["linear", "cosine", "trapezoid", "constant"],
        means("shape after warm-up; all but constant end at zero"),
    ] = "linear"
    warmup: Annotated[float, Meta(ge=0, lt=1), means("share of the run in which the rate rises")] = 0.02
    cooldown: Annotated[
        float, Meta(gt=0, le=1), means("share of the run in which a trapezoid falls, at most 1 - warmup")
    ] = 0.3


class FinetuneConfig(Settings, kw_only=True):
    """Training of an encoder that begins with weights."""

    frozen: Annotated[Probability, means("share of the run in which the encoder stays as it is")] = 0.0
    encoder_lr: Annotated[
        float, Meta(gt=0, le=1000), means("the encoder's learning rate as a factor of optimizer.lr")
    ] = 1.0


class BudgetConfig(Settings, kw_only=True):
    """Use of the time of trainer.max_time."""

    validation_share: Annotated[Share, means("share of the time that validation takes at most")] = 0.1
    checkpoint_every: Annotated[Duration, means("time between checkpoints: the most that a kill costs")] = (
        field(default_factory=lambda: Duration(minutes=5))
    )
    extend: Annotated[Duration | None, means("time to add when a run is resumed")] = None

    def __post_init__(self) -> None:
        """Read what a Python program gives as text."""
        self.checkpoint_every = parse_duration(self.checkpoint_every, key="budget.checkpoint_every")
        self.extend = parse_duration(self.extend, key="budget.extend")


class SweepConfig(Settings, kw_only=True):
    """A search for good settings within one time limit; sweep=tpe, random or grid begins one."""

    method: Annotated[Literal["tpe", "random", "grid"] | None, means("set by sweep=…")] = None
    space: Annotated[
        dict[str, Any],
        means("settings to search, as on the command line"),
        says('keys and values, as in {model.depth: "2,3,4"}'),
    ] = field(default_factory=dict)
    trials: Annotated[Positive | None, means("number of runs")] = None
    total_time: Annotated[Duration | None, means("time limit of the whole sweep")] = None
    name: Annotated[
        Annotated[str, Meta(pattern=r"^\w[\w.+-]*(/\w[\w.+-]*)*$")] | None,
        means("folder of the sweep; null: named by the command, which resumes it when given again"),
        says("a folder name of letters, digits and . _ + -, or null"),
    ] = None
    pruner: Annotated[
        Literal["none", "median", "halving", "hyperband"],
        means("rule that ends poor trials early"),
    ] = "none"
    trial: Annotated[NotNegative | None, means("number of a sweep's run; set by the sweep")] = None

    def __post_init__(self) -> None:
        """Read what a Python program gives as text."""
        self.total_time = parse_duration(self.total_time, key="sweep.total_time")


class Config(Settings, kw_only=True):
    """A run of train.py or prepare.py."""

    seed: Annotated[int, Meta(ge=0, lt=2**32), means("seed of split, weights, order and augmentation")] = 0
    run_dir: Annotated[str, means("folder of the run")] = "outputs"
    ckpt_path: Annotated[Text, means("checkpoint (.ckpt) to resume training from")] = None
    resume: Annotated[
        Literal["auto"] | None, means("auto: resume the run in run_dir, or begin one there")
    ] = None
    data: DataConfig = field(default_factory=DataConfig)
    masks: MasksConfig = field(default_factory=MasksConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: Annotated[Node, means("network")] = None
    compile: Annotated[bool, means("compile the network by torch.compile for training")] = False
    loss: Annotated[Node, means("loss")] = None
    optimizer: Annotated[Node, means("optimizer")] = None
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    trainer: Annotated[dict[str, Any], means("Lightning's Trainer")] = field(default_factory=dict)
    logger: Annotated[Node, means("Lightning's logger")] = None
    callbacks: Annotated[
        dict[str, Any],
        means("more callbacks, as in +callbacks.mine._target_=package.Class"),
        says("names that map to a _target_ each"),
    ] = field(default_factory=dict)
    export: Annotated[
        list[Literal["pth", "onnx", "torch_export"]],
        means("model files to write at the end; pth is always written"),
    ] = field(default_factory=lambda: ["pth"])

    @property
    def time_limit(self) -> timedelta | None:
        """`trainer.max_time`, the wall-clock limit of the run."""
        return parse_duration(self.trainer.get("max_time"), key="trainer.max_time")


class EvaluateConfig(Config, kw_only=True):
    """An evaluation by evaluate.py, which takes every setting of train.py too."""

    checkpoint: Annotated[Text, means("segmentation_model.pth or a .ckpt file")] = None
    split: Annotated[
        Literal["val", "train", "all"], means("images to score; val: what the training held out")
    ] = "val"
    score_at: Annotated[
        Literal["original", "network"],
        means("original: at each image's own size and the network's"),
    ] = "original"
    tta: Annotated[bool, means("average with the mirror image too, reported apart")] = False
    save_predictions: Annotated[bool, means("predicted masks as predictions/<image>.png")] = False
    gallery: Annotated[bool, means("gallery.html: all images to look through, the worst first")] = True
    network: Annotated[Text, means("class of a network of your own, as in my.package.Net")] = None


class PredictConfig(Settings, kw_only=True):
    """A prediction by predict.py."""

    checkpoint: Annotated[Text, means("segmentation_model.pth or a .ckpt file")] = None
    input: Annotated[Text, means("an image, a folder with all below it, or a pattern")] = None
    output: Annotated[
        str,
        means("folder; images that are done there are not done again"),
    ] = "outputs"
    values: Annotated[
        Literal["category_id", "index"], means("pixel of a predicted mask: category id or class index")
    ] = "category_id"
    overlay: Annotated[bool, means("overlays/: images under their masks, with a legend")] = True
    gallery: Annotated[bool, means("gallery.html: all images to look through")] = True
    coco_json: Annotated[bool, means("coco_results.json: an encoded mask per image and class")] = False
    annotations: Annotated[Text, means("COCO file that gives image ids; null: numbered from 1")] = None
    scale: Annotated[
        Annotated[float, Meta(ge=0.01, le=100)] | None,
        means("factor of the images' own size at the network; null: resized as in training"),
    ] = None
    tile: Annotated[
        Literal["auto"] | bool | list[Annotated[int, Meta(ge=64)]],
        means("overlapping tiles: auto where the input is large, always of this size, or never"),
        says("auto, false, or [height, width] from 64 pixels up"),
    ] = AUTO
    flip: Annotated[bool, means("average with the mirror image")] = False
    batch_size: Annotated[Positive, means("images at a time")] = 8
    accelerator: Annotated[Literal["auto", "cpu", "gpu", "mps"], means("device")] = AUTO
    precision: Annotated[
        Literal["auto", "32-true", "bf16-mixed", "16-mixed"],
        means("auto: bf16-mixed where the device has it, else 32-true"),
    ] = AUTO
    workers: Annotated[
        Positive | None, means("processes that decode, threads that write; null: one per core")
    ] = None
    network: Annotated[Text, means("class of a network of your own, as in my.package.Net")] = None
