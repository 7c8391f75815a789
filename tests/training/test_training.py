"""The recipe as a whole, on tiny data: what makes it fast changes nothing but the speed."""

import json
import logging
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from cocoseg.budget.budget import Budget
from cocoseg.budget.open_run import Run
from cocoseg.cli import resolve_config
from cocoseg.config import Config
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.errors import CocosegError, TrainingError, WriteError
from cocoseg.files import from_here
from cocoseg.inference.model import load_model
from cocoseg.networks.timm_unet import TimmUNet
from cocoseg.networks.unet import UNet
from cocoseg.run_folder import Outcome
from cocoseg.scores import Scores
from cocoseg.training import build, checkpoints
from cocoseg.training.metrics import ConfusionMatrix
from cocoseg.training.module import SegmentationModule
from cocoseg.training.recipe import train
from conftest import ROOT
from tiny import TINY_RUN, shapes_config
from witness import limit_files

TINY = (*TINY_RUN, "trainer.max_epochs=1", "logger=none")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folder that all runs on the shapes share; the first one prepares it."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def run(shapes_root, prepared, tmp_path):
    """Trains with overrides; returns the run folder."""

    def trained(name: str, *overrides: str, budget: Budget | None = None) -> Path:
        places = (
            f"data.root={shapes_root}",
            f"data.images={shapes_root}/images",
            f"data.annotations={shapes_root}/annotations/instances.json",
            f"data.prepared_dir={prepared}",
        )
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            of_unet = not any(override.startswith("model=") for override in overrides)
            tiny = [override for override in TINY if of_unet or not override.startswith("model.")]
            settings = resolve_config(compose("train", ["data=custom", *places, *tiny, *overrides]), Config)
        with suppress(SystemExit):  # after a signal
            train(settings, Run(tmp_path / name, budget or Budget(None), settings.ckpt_path))
        return tmp_path / name

    return trained


def last(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same(first: Path, second: Path) -> None:
    ours, theirs = last(first), last(second)
    assert ours["global_step"] == theirs["global_step"] > 0
    assert ours["scores"] == theirs["scores"]
    for name, value in ours["state_dict"].items():
        assert torch.equal(value, theirs["state_dict"][name]), name
    assert (first / "metrics.json").read_bytes() == (second / "metrics.json").read_bytes()


def test_neither_cache_nor_workers_nor_a_second_run_change_a_weight_or_score(run):
    overrides = ("augment=strong", "trainer.max_epochs=2")
    cached = run("cached", "data.cache=true", *overrides)
    assert_same(cached, run("helped", "data.cache=false", "data.num_workers=2", *overrides))


@pytest.mark.slow
def test_a_resumed_run_without_time_left_says_what_was_trained(run):
    first = run("first")
    spent = run("spent", f"ckpt_path={first}/checkpoints/last.ckpt", budget=Budget(60.0, used_before=60.0))
    assert Outcome.read(spent) == Outcome.read(first)
    assert Outcome.read(first).steps > 0
    assert load_model(spent / "segmentation_model.pth").labels


FULL = "+callbacks.full._target_=witness.FullDisk", "+callbacks.full.full=1"


def test_the_end_of_a_run_waits_for_a_full_disk(run, monkeypatch, caplog):
    monkeypatch.setattr("cocoseg.training.finish.time.sleep", lambda _: limit_files(-1))  # somebody tidies up
    folder = run("run", *FULL)
    assert Outcome.read(folder).state == "finished"
    assert last(folder)["global_step"] == Outcome.read(folder).steps > 1
    for name in ("segmentation_model.pth", "checkpoints/best.ckpt"):
        assert load_model(folder / name).labels
    assert json.loads((folder / "metrics.json").read_bytes())
    assert "last.ckpt: can't be written (File too large); the run goes on" in caplog.text


def test_a_disk_that_stays_full(run, monkeypatch):
    monkeypatch.setattr(checkpoints, "FIRST_RETRY", 0.0)
    monkeypatch.setattr(checkpoints, "RETRY", 0.0)
    try:
        with pytest.raises(WriteError, match=r"(best|last)\.ckpt: can't be written \(File too large\)"):
            run("run", *FULL, "budget.checkpoint_every={milliseconds:1}")
    finally:
        limit_files(-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("augment=light",),
        ("augment=default", "data.cache_size=[64,64]"),
        ("loss=ce_dice", "loss.class_weights=enet"),
    ],
    ids=["augmentation", "crops of larger images", "loss"],
)
def test_settings_reach_the_training(run, overrides):
    plain, changed = last(run("plain")), last(run("changed", *overrides))
    assert changed["global_step"] == plain["global_step"]
    assert changed["spec"] == plain["spec"]
    key = "net.stem.0.weight"
    assert not torch.equal(changed["state_dict"][key], plain["state_dict"][key])


@pytest.mark.slow
def test_batch_size_auto_without_a_gpu(run):
    """21 images for training, of which an epoch shall keep 16 batches."""
    assert last(run("auto", "data.batch_size=auto"))["global_step"] >= 16


@pytest.mark.parametrize("after", [pytest.param(0, marks=pytest.mark.slow), 7])
def test_memory_that_runs_out_ends_the_run_and_half_the_batch_continues_it(run, monkeypatch, tmp_path, after):
    """Five steps an epoch, which ends with a validation."""
    forward, passes = UNet.forward, []

    def greedy(self: UNet, image: torch.Tensor) -> torch.Tensor:
        if self.training:
            passes.append(len(image))
            if len(passes) > after and len(image) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, image)

    monkeypatch.setattr(UNet, "forward", greedy)
    folder, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    halves = ("data.batch_size=2", "trainer.accumulate_grad_batches=2")

    with pytest.raises(TrainingError) as raised:
        run("run", "trainer.max_epochs=2")

    assert str(raised.value) == (
        "out of memory with data.batch_size=4; to resume with half the batch: "
        f"python train.py run_dir={from_here(folder)} resume=auto {' '.join(halves)}"
    )
    assert (folder / "segmentation_model.pth").is_file() == (after >= 5)
    assert checkpoint.is_file() == (after > 0)
    goes_on = (f"ckpt_path={checkpoint}",) if after else ()
    if after:
        assert last(folder)["global_step"] == after

    run("run", "trainer.max_epochs=2", *halves, *goes_on)

    assert last(folder)["global_step"] >= 10
    assert set(passes[after + 1 :]) == {2}


@pytest.mark.slow
def test_the_preset_for_debugging(run):
    folder = run("debug", "trainer=debug", "trainer.max_epochs=1")
    assert last(folder)["global_step"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_other_precisions(run, precision):
    folder = run(precision, f"trainer.precision={precision}", "trainer.max_steps=2", "augment=default")
    assert last(folder)["global_step"] == 2
    assert (folder / "examples.png").is_file()


AVERAGING = "+callbacks.average._target_=lightning.pytorch.callbacks"


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.gradient_clip_val=0.1", "trainer.accumulate_grad_batches=2", "augment=strong"),
        ("loss=ce_dice", "loss.class_weights=enet", "augment=default", "augment.start_size=0.5"),
        (
            *("model=unet_residual", "model.base_channels=2", "model.depth=2", "model.dropout=0.2"),
            *("finetune.frozen=0.5", "finetune.encoder_lr=0.1", "optimizer=adamw"),
            "trainer.gradient_clip_val=0.1",
        ),
        (f"{AVERAGING}.StochasticWeightAveraging", "+callbacks.average.swa_lrs=1e-3"),
        (f"{AVERAGING}.EMAWeightAveraging", "trainer.gradient_clip_val=0.1"),
    ],
    ids=["clipping", "losses", "finetuning", "swa", "ema"],
)
def test_bfloat16_with_everything_else_and_a_resume(run, overrides):
    """Lightning takes bfloat16 for 16-mixed on a CPU; test_float16.py has the scaled loss."""
    overrides = (*overrides, "trainer.precision=bf16-mixed")
    folder = run("first", *overrides, "trainer.max_epochs=2")
    first = last(folder)
    checkpoint = f"ckpt_path={folder}/checkpoints/last.ckpt"
    resumed = last(run("second", *overrides, "trainer.max_epochs=4", checkpoint))

    assert resumed["global_step"] > first["global_step"] > 0
    for name, value in resumed["state_dict"].items():
        assert value.isfinite().all(), name
        assert value.dtype in (torch.float32, torch.int64), name


def test_memory_that_runs_out_in_preparation_is_one_line(run, monkeypatch):
    monkeypatch.setattr(
        "cocoseg.data.dataset.read_image", lambda path, **_: (_ for _ in ()).throw(MemoryError)
    )
    with pytest.raises(TrainingError, match=r"^out of memory: lower"):
        run("none", "data.image_size=[40,40]")


def test_small_images_first(run):
    sizes = []
    forward = UNet.forward

    def watched(self: UNet, image: torch.Tensor) -> torch.Tensor:
        if self.training:
            sizes.append(tuple(image.shape[-2:]))
        return forward(self, image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet, "forward", watched)
        run("small", "augment.start_size=0.4", "data.image_size=[48,48]", "trainer.max_epochs=2")
    assert sizes == sorted(sizes)
    assert set(sizes) == {(32, 32), (48, 48)}


@pytest.mark.slow
def test_classes_on_one_side_only_are_named(run, shapes_root, tmp_path, caplog):
    """All squares (the first class) lie on images that are held out."""
    content = json.loads((shapes_root / "annotations" / "instances.json").read_bytes())
    square = content["categories"][0]
    held_out = {image["id"] for image in content["images"][:6]}
    for name, chosen in (("val", True), ("train", False)):
        part = {**content, "images": [i for i in content["images"] if (i["id"] in held_out) is chosen]}
        part["annotations"] = [
            a
            for a in content["annotations"]
            if (a["image_id"] in held_out) is chosen and (chosen or a["category_id"] != square["id"])
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    files = (f"data.annotations={tmp_path}/train.json", f"data.val_annotations={tmp_path}/val.json")
    run("one_sided", *files, f"data.prepared_dir={tmp_path}/prepared", "trainer.max_steps=1")

    said = [record.message for record in caplog.records if record.name == "cocoseg.data.datamodule"]
    (line,) = [line for line in said if "on no training image" in line]
    assert line.startswith(f"classes in validation, but on no training image: {square['name']}; their IoU")


def test_small_images_first_need_an_end(run):
    with pytest.raises(CocosegError, match=r"^augment\.start_size grows with"):
        run("none", "augment.start_size=0.5", "trainer.max_epochs=-1")


# Averaged weights

AVERAGE = "+callbacks.average={_target_: lightning.pytorch.callbacks.%s}"
EMA = AVERAGE % "EMAWeightAveraging, decay: 0.5"
SWA = AVERAGE % "StochasticWeightAveraging, swa_lrs: 0.01, swa_epoch_start: 1"
averages = pytest.mark.parametrize(
    "average", [EMA, pytest.param(SWA, marks=pytest.mark.slow)], ids=["ema", "swa"]
)
SEVERAL_BATCHES = ("data.val_fraction=0.5", "trainer.max_epochs=3")  # 3 steps and 3 validation batches each


def best(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)


def same_weights(module: dict, other: dict) -> bool:
    """Tell whether the weights of a module are equal to those of another module or of a network."""
    network = {name.removeprefix("net."): value for name, value in other.items()}
    return all(torch.equal(value, network[name.removeprefix("net.")]) for name, value in module.items())


@averages
def test_the_weights_that_were_scored_are_exported(run, shapes_root, prepared, average):
    folder = run("run", average, *SEVERAL_BATCHES)
    model = load_model(folder / "segmentation_model.pth")
    assert same_weights(best(folder)["state_dict"], model.net.state_dict())
    if average is EMA:
        assert not same_weights(best(folder)["current_model_state"], model.net.state_dict())

    data = SegmentationDataModule(shapes_config(shapes_root, prepared, val_fraction=0.5))
    data.prepare_data()
    data.setup("fit")
    confusion = ConfusionMatrix(len(data.labels))
    with torch.inference_mode():
        for image, mask in data.val_set:
            confusion.update(model(image[None]).argmax(1), mask[None])
    scores = json.loads((folder / "metrics.json").read_bytes())
    assert Scores.from_matrix(confusion.compute().numpy()).miou == pytest.approx(scores["miou"], abs=1e-6)


@averages
def test_a_signal_inside_validation_mixes_up_no_weights(run, monkeypatch, average):
    """It comes in the second validation, after six steps."""
    weights = {}  # when -> of the network
    validate, train_on = SegmentationModule.validation_step, SegmentationModule.training_step

    def note(when: str, module: SegmentationModule) -> None:
        weights[when] = {name: value.clone() for name, value in module.net.state_dict().items()}

    def interrupted(self: SegmentationModule, batch: tuple, batch_index: int) -> torch.Tensor:
        if self.trainer.global_step == 6 and batch_index == 0:
            note("validated", self)
            signal.raise_signal(signal.SIGUSR1)
        return validate(self, batch, batch_index)

    def resumed(self: SegmentationModule, batch: tuple, batch_index: int) -> torch.Tensor:
        if self.trainer.global_step == 6:
            note("resumed", self)
        return train_on(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "validation_step", interrupted)
        patch.setattr(
            SegmentationModule, "on_train_batch_end", lambda self, *_: note("trained", self), raising=False
        )
        stopped = run("stopped", average, *SEVERAL_BATCHES)
    assert last(stopped)["global_step"] == 6
    assert same_weights(last(stopped)["state_dict"], weights["validated"])
    exported = torch.load(stopped / "segmentation_model.pth", weights_only=True)
    assert best(stopped)["global_step"] == 3
    assert same_weights(best(stopped)["state_dict"], exported["state_dict"])
    assert exported["scores"] == best(stopped)["scores"]

    monkeypatch.setattr(SegmentationModule, "training_step", resumed)
    run("resumed", average, *SEVERAL_BATCHES, f"ckpt_path={stopped}/checkpoints/last.ckpt")
    assert same_weights(weights["trained"], weights["resumed"])
    assert same_weights(weights["trained"], weights["validated"]) == (average is SWA)


@pytest.mark.slow
def test_a_checkpoint_of_before_with_averaged_weights(run, caplog):
    """It is evaluated and predicted with the averaged weights, and resumed without them."""
    folder = run("run")
    for name in ("best", "last"):
        path = folder / "checkpoints" / f"{name}.ckpt"
        content = torch.load(path, weights_only=True)
        weights = content["state_dict"]
        weights |= {f"average.{name}": 2 * value for name, value in weights.items()}
        torch.save(content, path)
    trained = {name: value for name, value in weights.items() if name.startswith("net.")}
    averaged = {name.removeprefix("average."): 2 * value for name, value in trained.items()}
    assert same_weights(averaged, load_model(path).net.state_dict())

    with caplog.at_level(logging.INFO):
        resumed = run("resumed", f"ckpt_path={path}", "trainer.max_epochs=2")
    (line,) = [record.message for record in caplog.records if "averaged weights" in record.message]
    assert line == "the checkpoint's averaged weights are left out: there is no `ema` any more"
    assert last(resumed)["global_step"] == 2 * content["global_step"]
    assert last(resumed)["state_dict"].keys() == trained.keys()


# Other networks

RESNET = ("model=unet_resnet34", "model.encoder=resnet18", "model.decoder_channels=[4,4,4,4,4]")
SEGMENTATION = "torchvision.models.segmentation"


@pytest.mark.slow
def test_a_network_of_others_that_returns_a_mapping(run):
    target = f"model._target_={SEGMENTATION}.lraspp_mobilenet_v3_large"
    kept = [f"~model.{key}" for key in ("base_channels", "depth")]  # not those of the preset
    folder = run("run", target, *kept, "+model.weights_backbone=null")
    assert last(folder)["spec"]["network"]["num_classes"] == 7
    assert (folder / "examples.png").is_file()
    net = lraspp_mobilenet_v3_large(num_classes=7, weights_backbone=None)
    image = torch.randn(1, 3, 40, 30)

    model = load_model(folder / "segmentation_model.pth", net=net)

    assert model(image).shape == (1, 7, 40, 30)
    assert torch.equal(model(image), model.net(image)["out"])


@pytest.mark.slow
def test_the_preset_of_torchvisions_deeplab(run):
    folder = run("run", "model=deeplabv3_resnet50", "trainer.max_steps=1", "finetune.frozen=0.5")
    assert any(name.startswith("net.aux_classifier") for name in last(folder)["state_dict"])


@pytest.mark.slow
def test_the_preset_of_another_package(run):
    pytest.importorskip("segmentation_models_pytorch")
    small = ("model.encoder_name=resnet18", "+model.decoder_channels=[8,8,8,8,8]", "trainer.max_steps=2")
    folder = run("run", "model=smp_unet", *small, "finetune.encoder_lr=0.1")
    assert last(folder)["spec"]["network"]["classes"] == 7
    with pytest.raises(CocosegError, match=r"^model: segmentation_models_pytorch\.Unet returns a tuple"):
        run("odd", "model=smp_unet", *small, "+model.aux_params={classes: 2}")


def test_a_package_that_is_missing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(CocosegError, match=r"^model: segmentation_models_pytorch\.Unet"):
        run("none", "model=smp_unet")


def test_an_argument_that_the_network_does_not_have(run):
    with pytest.raises(CocosegError, match=r"^model\.base_channels: .*: '~model\.base_channels'$"):
        run("none", *RESNET, "model.weights=null", "+model.base_channels=2")


# Weights to begin with, and fine-tuning


def resnet_file(tmp_path: Path, classes: int = 21) -> Path:
    torch.manual_seed(5)
    net = TimmUNet(classes, "resnet18", decoder_channels=(4, 4, 4, 4, 4))
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.mark.slow
def test_an_encoder_that_is_never_trained_is_exported_as_it_was_read(run, tmp_path):
    path = resnet_file(tmp_path)
    weights = (f"model.weights={path}", "model.weights_part=body", "finetune.frozen=1.0")
    folder = run("run", *RESNET, *weights)
    before = torch.load(path, weights_only=True)
    model = load_model(folder / "segmentation_model.pth")  # builds it without the file's name
    after = model.net.state_dict()
    assert len(before) == len(after)
    for name, value in before.items():
        assert name.startswith("encoder.") == torch.equal(value, after[name]) or "num_batches" in name, name


@pytest.mark.slow
def test_who_goes_on_needs_the_file_no_more(run, tmp_path):
    path = resnet_file(tmp_path, classes=7)
    overrides = (*RESNET, "finetune.encoder_lr=0.1", f"model.weights={path}", "finetune.frozen=0.5")
    first = run("first", *overrides)
    assert not {"weights", "weights_part"} & last(first)["spec"]["network"].keys()
    path.unlink()
    checkpoint = f"ckpt_path={first}/checkpoints/last.ckpt"

    second = run("second", *overrides, checkpoint, "trainer.max_epochs=2")

    assert last(second)["global_step"] == 2 * last(first)["global_step"]
    with pytest.raises(CocosegError, match=r"last\.ckpt: its optimizer does not fit .*encoder_lr"):
        run("third", *overrides, checkpoint, "finetune.encoder_lr=1.0")
    with pytest.raises(CocosegError, match=r"^model\.weights: no file"):
        run("fourth", *overrides)


@pytest.mark.parametrize("first", [True, False])
def test_weights_are_fetched_once_per_machine(monkeypatch, first):
    done = []
    monkeypatch.setattr(build.distributed, "is_first_of_machine", lambda: first)
    monkeypatch.setattr(build.distributed, "barrier", lambda: done.append("wait"))
    monkeypatch.setattr(build, "read_pretrained", lambda model: done.append("read") or "weights")
    assert build._read_pretrained_once(Config()) == "weights"
    assert done == (["read", "wait"] if first else ["wait", "read"])


@pytest.mark.slow
def test_another_head_is_refused(run, tmp_path):
    with pytest.raises(
        CocosegError, match=r"its head has 21 classes, these data have 7; .*weights_part=body"
    ):
        run("none", *RESNET, f"model.weights={resnet_file(tmp_path)}")


def test_a_network_without_an_encoder_can_not_be_fine_tuned(run):
    with pytest.raises(CocosegError, match=r"^finetune: UNet has neither"):
        run("none", "finetune.encoder_lr=0.1")
