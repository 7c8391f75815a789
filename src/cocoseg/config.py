"""Schemas of our own settings. No torch, no Hydra; checks.py says what they can't.

The defaults that users get stand in conf/; those here are the same wherever a schema is used without it.
What users swap as a whole (model, loss, optimizer, trainer, logger, callbacks) is an untyped node with a
`_target_`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COCO_ANNOTATIONS = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
DEFAULT_ROOT = "data/coco"  # of data=coco: ours, so what is missing there is fetched without being asked
OVERLAPS = ("max", "smallest", "ignore")
RASTERIZERS = ("pillow", "coco")
CROWDS = ("ignore", "draw", "skip")
ENCODINGS = ("palette", "uint16", "x100")
LABELS = ("all", "supercategories")
SCHEDULES = ("linear", "cosine", "trapezoid", "constant")
OTHERS = ("background", "ignore")
CLASS_WEIGHTS = ("none", "enet", "median")
AUTO = "auto"
LEAST_TILE = 64  # pixels
PIXELS = ("category_id", "index")
ACCELERATORS = (AUTO, "cpu", "gpu", "mps")
PRECISIONS = (AUTO, "32-true", "bf16-mixed", "16-mixed")
SWEEPS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "halving", "hyperband")
IMAGENET = ("IMAGENET1K_V1", "IMAGENET1K_V2")  # torchvision's names of weights
WEIGHTS_PARTS = ("all", "body", "encoder")
DDP = "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"
STRATEGIES = (AUTO, *DDP)  # those of Lightning that start train.py for each device
# Formats of a trained model, and the packages that each needs.
EXPORTS = {"pth": (), "onnx": ("onnx", "onnxruntime", "onnxscript"), "torch_export": ()}


@dataclass
class SubsetConfig:
    """Which images of the annotation file."""

    size: int | None = 8000  # null: all; all too if there are fewer
    seed: int = 0
    categories: list[Any] | None = None  # names or ids; null: all
    other: str = "background"  # what objects of categories without a class become; or: ignore
    keep_empty: bool = False  # images without annotations too
    min_pixels: int = 0  # of annotated area; images with less are left out
    stratify: bool = False  # rare classes first


@dataclass
class ShapesConfig:
    """The built-in data set of drawn shapes."""

    images: int = 240
    seed: int = 0


@dataclass
class DataConfig:
    """Where the data is and how it reaches the network."""

    root: str | None = None
    images: str | None = None  # folder of images
    annotations: str | None = None  # COCO instances file
    val_images: str | None = None  # null: the same folder as `images`
    val_annotations: str | None = None  # null: a part of the training images is held out
    prepared_dir: str | None = None  # null: prepared/<annotation file>-<key of the settings>
    image_size: list[int] = field(default_factory=lambda: [224, 224])  # height, width
    batch_size: int | str = 16  # auto: the largest power of two that a GPU's memory has room for
    num_workers: int | None = None  # null: what the cache and the device ask for
    cache: bool = True  # decode and resize once, into arrays beside the masks
    cache_size: list[int] | None = None  # height, width of training images before they are cropped
    val_fraction: float = 0.1
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    labels: Any = "all"  # a class per category; supercategories; or {name: [categories], …}
    download: bool | None = None  # prepare.py fetches what is missing; null: into DEFAULT_ROOT only
    annotations_url: str | None = COCO_ANNOTATIONS  # zip with annotations/<name of the file>, or that file
    images_url: str | None = None  # what file names are appended to; null: each image's coco_url
    max_image_bytes: int = 64 * 2**20  # larger downloads are refused
    shapes: ShapesConfig | None = None  # draw the data set at `root` first

    @property
    def fetches(self) -> bool:
        """Whether prepare.py fetches what is missing."""
        if self.download is not None or self.shapes is not None:
            return bool(self.download) and self.shapes is None
        places = (self.images, self.annotations, self.val_images, self.val_annotations)
        return all(Path(place).is_relative_to(DEFAULT_ROOT) for place in places if place is not None)


@dataclass
class MasksConfig:
    """How masks are drawn and written, see rasterize.py and encoding.py."""

    overlap: str = "max"
    rasterizer: str = "pillow"
    crowd: str = "ignore"
    encoding: str = "palette"


@dataclass
class AugmentConfig:
    """What is done to training images at random, see augment.py; 0 switches a transform off."""

    flip: float = 0.0  # probability, left to right
    scale: list[float] = field(default_factory=lambda: [1.0, 1.0])  # of the image against what is cropped
    rotate: float = 0.0  # degrees, at most
    brightness: float = 0.0  # by a factor of 1 ± this, at most
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # share of a full turn, at most
    greyscale: float = 0.0  # probability
    blur: float = 0.0  # probability
    cutout: float = 0.0  # probability of a rectangle that is neither seen nor scored
    class_mix: float = 0.0  # probability of half of another image's classes laid over
    start_size: float = 1.0  # share of image_size at which training begins, to grow to it


@dataclass
class PrepareConfig:
    workers: int | None = None  # processes; null: one per core
    check_only: bool = False  # prepare.py: check the annotations, write nothing


@dataclass
class ScheduleConfig:
    """How the learning rate follows the run's progress, see schedule.py."""

    name: str = "linear"
    warmup: float = 0.02  # share of the run in which the rate rises
    cooldown: float = 0.3  # share of the run in which a trapezoid falls


@dataclass
class FinetuneConfig:
    """How an encoder that begins with weights is treated, see finetuning.py."""

    frozen: float = 0.0  # share of the run in which it stays as it is; 1: all of it
    encoder_lr: float = 1.0  # factor of optimizer.lr


@dataclass
class BudgetConfig:
    """How the time of `trainer.max_time` is used, see budget.py."""

    validation_share: float = 0.1  # of the time used, at most
    checkpoint_every: Any = "00:00:05:00"  # what a kill costs at most
    extend: Any = None  # time to add to that of a run that is resumed


@dataclass
class SweepConfig:
    """A search for good settings, see search.py; sweep=tpe, random or grid chooses the method."""

    method: str | None = None
    space: dict[str, Any] = field(default_factory=dict)  # as on the command line: {model.depth: "2,3,4"}
    trials: int | None = None
    total_time: Any = None  # of the whole sweep; null: no limit
    name: str | None = None  # of folder and study; null: from the command
    pruner: str = "none"  # rule by which poor trials are ended early, see pruning.py
    trial: int | None = None  # which one a job is; set by the sweep


@dataclass
class Config:
    """Everything that `train.py` and `prepare.py` are told."""

    seed: int = 0
    run_dir: str = "outputs"
    ckpt_path: str | None = None
    resume: str | None = None  # auto: go on in run_dir where it holds a run, else begin
    data: DataConfig = field(default_factory=DataConfig)
    masks: MasksConfig = field(default_factory=MasksConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: Any = None
    compile: Any = False  # torch.compile of the network in training: true or false
    loss: Any = None
    optimizer: Any = None
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    trainer: Any = None
    logger: Any = None
    callbacks: Any = field(default_factory=dict)
    export: list[str] = field(default_factory=lambda: ["pth"])  # what a run ends with; pth is always written


@dataclass
class PredictConfig:
    """Everything that `predict.py` is told."""

    checkpoint: str | None = None  # segmentation_model.pth or a .ckpt file
    input: str | None = None  # a picture, a folder, a pattern
    output: str = "outputs"  # folder
    values: str = "category_id"  # what pixels of masks are; or: index
    overlay: bool = True
    gallery: bool = True
    coco_json: bool = False
    annotations: str | None = None  # COCO file that gives the image ids of coco_json
    scale: float | None = None  # null: to the size of training; a number: of the picture's own pixels
    tile: Any = AUTO  # [height, width], or false
    flip: bool = False  # average with the mirror image
    scales: list[float] = field(default_factory=lambda: [1.0])  # average over these
    batch_size: int = 8
    accelerator: str = AUTO
    precision: str = AUTO
    workers: int | None = None  # threads each that read and that write; null: one per core, two at least
    network: str | None = None  # class of a network that is none of ours
