"""predict.py, in this process and from its command line."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from pycocotools import mask as rle

from cocoseg.config import PredictConfig
from cocoseg.config_cross_checks import check_predict
from cocoseg.errors import CocosegError, IncompleteError, TrainingError
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.inference import coco_results
from cocoseg.inference import pipeline as pipeline_module
from cocoseg.inference.predict_folder import predict_folder
from cocoseg.inference.predictor import Predictor
from cocoseg.inference.results import Results
from cocoseg.labels import LabelClass, LabelMap
from cocoseg.networks.model_file import save_model
from cocoseg.networks.spec import ModelSpec
from conftest import run_here, run_program, write_coco
from tiny import LABELS, Reads

TO_TARGET = {"_target_": "tiny.Reads"}


class Net(Reads):
    """A custom network that is built with the arguments in its model file."""

    def __init__(self, **arguments: Any):
        assert arguments == {"num_classes": 3}
        super().__init__()


def saved(path: Path, labels: LabelMap = LABELS, size: tuple[int, int] = (60, 90), **reading: Any) -> Path:
    """Write a model that predicts 0, 1, 2 where an image is red, green, blue."""
    spec = ModelSpec({**TO_TARGET, "num_classes": 3}, labels, size, **reading)
    save_model(path, Reads().state_dict(), spec, None)
    return path


def stripes(height: int = 60, width: int = 90, order: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    return np.repeat(np.array(order, dtype=np.uint8), width // 3)[None].repeat(height, 0)


def drawn(mask: np.ndarray) -> PIL.Image.Image:
    """The image for which the model predicts this mask."""
    return PIL.Image.fromarray(255 * np.eye(3, dtype=np.uint8)[mask])


def run(tmp_path: Path, input: Path, **settings: Any) -> Path:
    output = tmp_path / settings.pop("output", "out")
    checkpoint = tmp_path / "model.pth"
    if not checkpoint.exists():
        saved(checkpoint)
    config = PredictConfig(
        **{
            "checkpoint": str(checkpoint),
            "input": str(input),
            "output": str(output),
            "network": "test_predict_folder.Net",
            "precision": "32-true",
            "accelerator": "cpu",
            **settings,
        }
    )
    check_predict(config)
    predict_folder(config, output)
    return output


def mask_of(output: Path, name: str) -> np.ndarray:
    with PIL.Image.open(output / "masks" / f"{name}.png") as image:
        return np.asarray(image)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos/deep").mkdir(parents=True)
    drawn(stripes()).save(tmp_path / "photos/a.png")
    drawn(stripes(40, 30)).save(tmp_path / "photos/b.bmp")
    drawn(stripes(order=(2, 0, 1))).save(tmp_path / "photos/deep/a.png")
    return tmp_path / "photos"


# ---- files that are written


def test_masks_hold_category_ids_and_a_color_palette(tmp_path, photos):
    output = run(tmp_path, photos)
    expected = np.array([0, 2, 5], dtype=np.uint8)
    np.testing.assert_array_equal(mask_of(output, "a"), expected[stripes()])
    np.testing.assert_array_equal(mask_of(output, "deep/a"), expected[stripes(order=(2, 0, 1))])
    assert mask_of(output, "b").shape == (40, 30)
    with PIL.Image.open(output / "masks/a.png") as image:
        assert image.mode == "P"
        assert image.convert("RGB").getpixel((89, 0)) == (0, 0, 255)
    assert json.loads((output / "labels.json").read_bytes())["masks"]["pixel"] == "category_id"
    np.testing.assert_array_equal(MaskEncoding.load(output).read(output / "masks/a.png"), stripes())


def test_masks_hold_class_indices_on_request(tmp_path, photos):
    output = run(tmp_path, photos, values="index")
    np.testing.assert_array_equal(mask_of(output, "a"), stripes())
    assert json.loads((output / "labels.json").read_bytes())["masks"]["pixel"] == "class_index"


def test_masks_of_grouped_categories_hold_class_indices(tmp_path, photos, caplog):
    labels = LabelMap((*LABELS.classes[:2], LabelClass((5, 6), "pets", (0, 0, 255))))
    saved(tmp_path / "model.pth", labels)
    np.testing.assert_array_equal(mask_of(run(tmp_path, photos), "a"), stripes())
    assert "class indices" in caplog.text


def test_overlays_and_the_gallery_show_all_images(tmp_path, photos):
    output = run(tmp_path, photos)
    with PIL.Image.open(output / "overlays/deep/a.jpg") as image:
        assert image.width >= 90
        assert image.height > 60  # the legend is below
    assert {path.name for path in (output / "overlays").rglob("*.jpg")} == {"a.jpg", "b.jpg"}
    page = (output / "gallery.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == ["a.png", "b.bmp", "deep/a.png"]
    assert page.count("cat 33.3 %") == 3


def test_overlays_and_gallery_can_be_left_out(tmp_path, photos):
    output = run(tmp_path, photos, overlay=False, gallery=False)
    assert {path.name for path in output.iterdir()} == {"masks", "labels.json", "predictions.json"}


def test_coco_results_list_each_image_and_class(tmp_path, photos):
    output = run(tmp_path, photos, coco_json=True)
    found = json.loads((output / "coco_results.json").read_bytes())
    assert [(one["image_id"], one["category_id"], one["file_name"]) for one in found] == [
        (number, category, name)
        for number, name in ((1, "a.png"), (2, "b.bmp"), (3, "deep/a.png"))
        for category in (2, 5)
    ]
    assert found[0]["segmentation"]["size"] == [60, 90]


def test_coco_results_have_the_image_ids_of_an_annotation_file(tmp_path, photos, caplog):
    images = [{"id": 17, "file_name": "b.bmp", "width": 30, "height": 40}]
    annotations = write_coco(tmp_path / "a.json", images=images, annotations=[])
    output = run(tmp_path, photos, coco_json=True, annotations=str(annotations))
    found = json.loads((output / "coco_results.json").read_bytes())
    assert {one["image_id"] for one in found} == {17}
    assert "does not list 2 of the images" in caplog.text


def test_coco_results_are_written_as_they_are_made(tmp_path, photos, monkeypatch):
    sizes = []

    def entries(mask, image_id, name, labels):
        sizes.append(sum(part.stat().st_size for part in (tmp_path / "out").glob(".part-*.json")))
        return [{"image_id": image_id, "text": 100_000 * "x"}]

    monkeypatch.setattr(coco_results, "entries_of", entries)
    monkeypatch.setattr(coco_results, "AT_A_TIME", 1)
    output = run(tmp_path, photos, coco_json=True)
    assert len(json.loads((output / "coco_results.json").read_bytes())) == len(sizes) == 3
    assert sizes[-1] > 100_000


def test_probabilities_on_request(tmp_path, photos):
    """Logits are the normalized channels: 2.249, -2.036, -1.804 where an image is red."""
    output = run(tmp_path, photos, probabilities=True)
    sure = np.array([247, 249, 251], dtype=np.uint8)  # 255 times 0.9698, 0.9755, 0.9824
    with PIL.Image.open(output / "confidence/deep/a.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), sure[stripes(order=(2, 0, 1))])
    assert not (output / "probabilities").exists()

    run(tmp_path, photos, probabilities="all")

    with np.load(output / "probabilities/a.npz") as file:
        assert file.files == ["probabilities"]
        found = file["probabilities"]
    assert (found.dtype, found.shape) == (np.float16, (3, 60, 90))
    np.testing.assert_array_equal(found.argmax(0), stripes())
    np.testing.assert_allclose(found[:, 0, 0], [0.9698, 0.0134, 0.0168], atol=5e-4)
    assert {path.name for path in (output / "confidence").rglob("*.png")} == {"a.png", "b.png"}


def test_an_image_with_too_many_probabilities_is_left_out(tmp_path, photos, monkeypatch, caplog):
    monkeypatch.setattr("cocoseg.inference.probabilities.LIMIT", 2 * 3 * 40 * 30)
    with pytest.raises(IncompleteError, match="2 of 3 images are left out"):
        run(tmp_path, photos, probabilities="all")
    assert f"left out: {photos}/a.png: probabilities of 3 classes for 90x60 pixels would take" in caplog.text
    assert [path.name for path in (tmp_path / "out/probabilities").iterdir()] == ["b.npz"]
    run(tmp_path, photos, probabilities=True)


# ---- any image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P"])
def test_images_of_any_mode_are_predicted(tmp_path, mode):
    path = tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    drawn(stripes()).convert(mode).save(path)
    np.testing.assert_array_equal(mask_of(run(tmp_path, path, values="index"), "a"), stripes())


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    """An image to be turned clockwise: 90 x 60 pixels as stored."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    drawn(stripes()).save(tmp_path / "a.png", exif=exif)
    return tmp_path / "a.png"


def listing(path: Path, width: int, height: int) -> str:
    image = {"id": 7, "file_name": "a.png", "width": width, "height": height}
    return str(write_coco(path, images=[image], annotations=[]))


@pytest.mark.parametrize(("exif", "turns"), [(None, -1), ("apply", -1), ("ignore", 0)])
def test_images_are_turned_as_training_images_were(tmp_path, turned, exif, turns):
    saved(tmp_path / "model.pth", exif=exif)
    output = run(tmp_path, turned, values="index")
    np.testing.assert_array_equal(mask_of(output, "a"), np.rot90(stripes(), turns))
    with PIL.Image.open(output / "gallery/a.image.jpg") as image:
        assert image.size == mask_of(output, "a").shape[::-1]


@pytest.mark.parametrize(
    ("exif", "size", "turns"),
    [(None, (90, 60), 0), (None, (60, 90), -1), ("ignore", (60, 90), -1), ("ignore", (90, 60), 0)],
)
def test_coco_results_have_the_sizes_of_the_annotation_file(tmp_path, turned, exif, size, turns, caplog):
    saved(tmp_path / "model.pth", exif=exif)
    listed = listing(tmp_path / "a.json", *size)
    output = run(tmp_path, turned, values="index", coco_json=True, annotations=listed)
    np.testing.assert_array_equal(mask_of(output, "a"), np.rot90(stripes(), turns))
    results = json.loads((output / "coco_results.json").read_bytes())
    assert {tuple(entry["segmentation"]["size"]) for entry in results} == {size[::-1]}
    assert "the file gives" not in caplog.text


def test_results_are_turned_back_to_the_stored_size(tmp_path, turned, caplog):
    """In training they were turned, though the file gave stored sizes. A scorer needs the file's sizes."""
    saved(tmp_path / "model.pth", exif="apply")
    listed = listing(tmp_path / "a.json", 90, 60)
    output = run(tmp_path, turned, values="index", coco_json=True, annotations=listed)
    np.testing.assert_array_equal(mask_of(output, "a"), np.rot90(stripes(), -1))
    results = json.loads((output / "coco_results.json").read_bytes())
    for entry in results:
        index = {2: 1, 5: 2}[entry["category_id"]]
        np.testing.assert_array_equal(rle.decode(entry["segmentation"]), stripes() == index)
    assert "for 1 image (a.png) the file gives width and height as stored, and the results" in caplog.text


def test_another_size_in_the_annotation_file_is_a_warning(tmp_path, turned, caplog):
    listed = listing(tmp_path / "a.json", 80, 60)
    run(tmp_path, turned, coco_json=True, annotations=listed)
    assert "for 1 image (a.png) the file gives another size than they have" in caplog.text


def test_a_swapped_size_in_an_annotation_file_predicts_the_image_again(tmp_path, turned):
    run(tmp_path, turned, values="index")
    for size, turns in (((90, 60), 0), ((60, 90), -1)):
        listed = listing(tmp_path / "a.json", *size)
        output = run(tmp_path, turned, values="index", coco_json=True, annotations=listed)
        np.testing.assert_array_equal(mask_of(output, "a"), np.rot90(stripes(), turns))


def test_more_than_8_bits_are_scaled_as_in_training(tmp_path, caplog):
    """The image is white for a model that was trained on 12 bits, and black for one without a bit depth."""
    PIL.Image.fromarray(np.full((60, 90), 4095, np.uint16)).save(tmp_path / "a.png")
    for bits, gray in ((12, 255), (None, 15), (16, 15), (10, 255)):
        saved(tmp_path / "model.pth", bits=bits)
        caplog.clear()
        output = run(tmp_path, tmp_path / "a.png", output=f"out{bits}")
        with PIL.Image.open(output / "gallery/a.image.jpg") as image:
            assert abs(image.getpixel((5, 5))[0] - gray) <= 2
        assert ("1 image: pixels of more than 8 bits, unlike the training images" in caplog.text) == (
            bits is None
        )
        assert ("1 image: values beyond the 10 bits" in caplog.text) == (bits == 10)


def test_bands_that_are_not_read_are_a_warning(tmp_path, caplog):
    page = drawn(stripes())
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    run(tmp_path, tmp_path / "a.tif")
    assert "1 image: several pages, of which only the first is read (a)" in caplog.text


def test_each_mask_belongs_to_its_image(tmp_path):
    """Images of many sizes come in batches of any order."""
    (tmp_path / "in").mkdir()
    generator = np.random.default_rng(0)
    expected = {}
    for number in range(40):
        height, width = 3 * generator.integers(4, 20, 2)
        expected[f"{number}"] = stripes(height, width, tuple(generator.permutation(3)))
        drawn(expected[f"{number}"]).save(tmp_path / f"in/{number}.png")
    output = run(tmp_path, tmp_path / "in", values="index", scale=1, overlay=False, gallery=False)
    for name, mask in expected.items():
        np.testing.assert_array_equal(mask_of(output, name), mask)


def test_large_images_are_predicted(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(pipeline_module, "LARGE", 2 * 60 * 90 - 1)
    output = run(tmp_path, photos, values="index", scale=1)
    np.testing.assert_array_equal(mask_of(output, "a"), stripes())
    assert len(list((output / "masks").rglob("*.png"))) == 3


def test_few_images_are_decoded_ahead(tmp_path, photos, monkeypatch):
    read_with_faults, masks = pipeline_module.read_with_faults, Predictor.masks
    for number in range(56):
        (photos / f"{number}.png").write_bytes((photos / "a.png").read_bytes())
    (tmp_path / "read").mkdir()
    ahead = []

    def read(path, **reading):
        (tmp_path / "read" / f"{path.parent.name}-{path.name}").touch()
        return read_with_faults(path, **reading)

    def slow(self, inputs, sizes):
        if not ahead:
            time.sleep(1)
            ahead.append(len(list((tmp_path / "read").iterdir())))
        return masks(self, inputs, sizes)

    monkeypatch.setattr(pipeline_module, "read_with_faults", read)
    monkeypatch.setattr(Predictor, "masks", slow)
    monkeypatch.setattr(pipeline_module, "AHEAD", 8)
    run(tmp_path, photos, batch_size=8, workers=2, overlay=False, gallery=False)
    assert ahead[0] <= 8 + 8  # a batch, and the images that are decoded ahead


def test_few_bytes_wait_to_be_written(tmp_path, photos, monkeypatch):
    masks, write = Predictor.masks, Results.write
    predicted, finished, waiting = [], [], []

    def counted(self, inputs, sizes):
        predicted.extend(sizes)
        waiting.append(len(predicted) - len(finished))
        return masks(self, inputs, sizes)

    def slow(self, entry, *rest):
        time.sleep(0.2)
        finished.append(entry.name)
        return write(self, entry, *rest)

    for number in range(3):
        drawn(stripes()).save(photos / f"{number}.png")
    monkeypatch.setattr(Predictor, "masks", counted)
    monkeypatch.setattr(Results, "write", slow)
    monkeypatch.setattr(pipeline_module, "WAITING_BYTES", 60 * 90)  # size of a mask; scores are larger
    run(tmp_path, photos, batch_size=1, workers=1)
    assert len(finished) == 6
    assert max(waiting) <= 2


SHORT = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 10000000000 bytes"


def test_too_little_memory_for_the_network_is_a_one_line_error(tmp_path, photos, monkeypatch):
    def short(self, inputs, sizes):
        raise RuntimeError(SHORT)

    monkeypatch.setattr(Predictor, "masks", short)
    with pytest.raises(TrainingError, match="out of memory: lower batch_size"):
        run(tmp_path, photos)


# ---- errors


def test_a_broken_image_is_reported_and_the_others_are_predicted(tmp_path, photos, caplog):
    (photos / "c.jpg").write_bytes(b"no picture")
    (photos / "d.png").write_bytes((photos / "a.png").read_bytes()[:60])
    with pytest.raises(IncompleteError, match="2 of 5 images are left out"):
        run(tmp_path, photos)
    output = tmp_path / "out"
    assert sorted(path.name for path in (output / "masks").rglob("*.png")) == ["a.png", "a.png", "b.png"]
    assert "c.jpg: not a readable image" in caplog.text
    assert "d.png: not a readable image" in caplog.text
    assert "c.jpg" not in (output / "gallery.html").read_text()
    drawn(stripes()).save(photos / "c.jpg")
    (photos / "d.png").unlink()
    run(tmp_path, photos)  # the image is mended now
    assert mask_of(output, "c").shape == (60, 90)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(SHORT)], ids=repr)
def test_an_image_too_large_for_the_memory_is_reported(tmp_path, photos, monkeypatch, caplog, error):
    read_with_faults = pipeline_module.read_with_faults

    def read(path, **reading):
        if path.name == "b.bmp":
            raise error
        return read_with_faults(path, **reading)

    monkeypatch.setattr(pipeline_module, "read_with_faults", read)
    with pytest.raises(IncompleteError, match="1 of 3 images are left out"):
        run(tmp_path, photos)
    assert "b.bmp: not enough memory to read it" in caplog.text


def test_a_name_that_is_not_utf8_is_reported_and_the_others_are_predicted(tmp_path, photos, caplog):
    (photos / "a.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(IncompleteError, match="1 of 3 images are left out"):
        run(tmp_path, photos, coco_json=True)
    output = tmp_path / "out"
    assert len(json.loads((output / "predictions.json").read_bytes())["images"]) == 2
    # The image that is left out has a number, too.
    found = json.loads((output / "coco_results.json").read_bytes())
    assert len({one["image_id"] for one in found}) == 2
    assert r"caf\xe9.png: its name is not UTF-8; rename it" in caplog.text


def test_an_output_that_cannot_be_written_is_an_error(tmp_path, photos):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/masks").write_text("a file where a folder shall be")
    with pytest.raises(CocosegError, match="can't be written"):
        run(tmp_path, photos)


def test_a_file_does_not_choose_what_is_imported(tmp_path, photos):
    with pytest.raises(CocosegError, match=r"holds weights of tiny\.Reads.*network=tiny\.Reads"):
        run(tmp_path, photos, network=None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_missing_device_is_an_error(tmp_path, photos):
    with pytest.raises(CocosegError, match="accelerator: there is no gpu here"):
        run(tmp_path, photos, accelerator="gpu")


# ---- a second run


def forbidden(*_: object) -> None:
    raise AssertionError("it was done before")


def written(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_second_run_skips_existing_results(tmp_path, photos, monkeypatch):
    before = written(run(tmp_path, photos) / "masks")
    monkeypatch.setattr(pipeline_module, "read_with_faults", forbidden)
    output = run(tmp_path, photos)
    assert written(output / "masks") == before
    assert (output / "gallery.html").read_text().count("<article>") == 3


def test_a_second_run_predicts_new_and_replaced_images_and_missing_results(tmp_path, photos):
    output = run(tmp_path, photos)
    before = written(output / "masks")
    drawn(stripes(order=(1, 1, 1))).save(photos / "a.png")
    drawn(stripes()).save(photos / "c.bmp")
    (output / "masks/deep/a.png").unlink()
    (output / "overlays/b.jpg").unlink()
    run(tmp_path, photos, output="out")
    after = written(output / "masks")
    assert {name for name in after if after[name] != before.get(name)} == {
        "a.png",
        "b.png",
        "c.png",
        "deep/a.png",
    }
    assert set(np.unique(mask_of(output, "a"))) == {2}
    np.testing.assert_array_equal(mask_of(output, "c"), np.array([0, 2, 5])[stripes()])
    assert (output / "overlays/b.jpg").is_file()


def test_two_inputs_share_an_output(tmp_path, photos):
    output = run(tmp_path, photos / "a.png")
    run(tmp_path, photos / "b.bmp")
    np.testing.assert_array_equal(mask_of(output, "a"), np.array([0, 2, 5])[stripes()])
    assert mask_of(output, "b").shape == (40, 30)
    with pytest.raises(CocosegError, match="would have the same results"):
        run(tmp_path, photos / "deep/a.png")


def test_a_second_run_with_other_settings_is_refused(tmp_path, photos):
    run(tmp_path, photos)
    with pytest.raises(CocosegError, match="made with another scale"):
        run(tmp_path, photos, scale=0.5)
    with pytest.raises(CocosegError, match="made with another values"):
        run(tmp_path, photos, values="index")
    run(tmp_path, photos, batch_size=1, workers=1, coco_json=True)  # these settings change no mask


def test_a_second_run_with_another_model_is_refused(tmp_path, photos):
    output = run(tmp_path, photos)
    before = written(output)
    saved(tmp_path / "model.pth", size=(30, 30))
    with pytest.raises(CocosegError, match="predictions made with another model"):
        run(tmp_path, photos)
    assert written(output) == before


def test_an_interrupted_run_keeps_its_results(tmp_path, photos, monkeypatch):
    write = Results.write

    def interrupt(self, entry, *rest):
        if entry.name == "b":
            raise KeyboardInterrupt
        return write(self, entry, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Results, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, photos, workers=1, batch_size=1)
    manifest = json.loads((tmp_path / "out/predictions.json").read_bytes())
    assert len(manifest["images"]) == 1
    (tmp_path / "out/masks/.part-0123.png").write_bytes(b"left by a kill")
    output = run(tmp_path, photos)
    assert len(json.loads((output / "predictions.json").read_bytes())["images"]) == 3
    assert [path for path in written(output) if ".part-" in path] == []


def test_unfinished_files_of_other_programs_are_kept(tmp_path, photos):
    for name in ("out/.part-1.json", "out/runs/1/.part-2.ckpt", "out/masks/deep/.part-3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    output = run(tmp_path, photos)
    assert {name for name in written(output) if ".part-" in name} == {".part-1.json", "runs/1/.part-2.ckpt"}


# ---- the command line


@pytest.mark.slow
def test_the_program_from_end_to_end(tmp_path, photos):
    checkpoint = saved(tmp_path / "model.pth")
    (photos / "c.jpg").write_bytes(b"no picture")
    here = Path(__file__).parent  # this module defines the network; tiny.py is one folder up
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    network = {"PYTHONPATH": path}
    overrides = (
        f"checkpoint={checkpoint}",
        "input=photos/**/*.*",
        "output=out",
        "network=test_predict_folder.Net",
    )

    done = run_program("predict", *overrides, "accelerator=cpu", cwd=tmp_path, **network)

    assert done.returncode == 1, done.stderr
    assert done.stderr == "error: 1 of 4 images are left out, as listed above\n"
    assert "left out: photos/c.jpg: not a readable image" in done.stdout
    assert "predicted    3 of 4 images" in done.stdout
    assert "to look at   out/gallery.html" in done.stdout
    assert {"config.yaml", "predict.log", "masks", "gallery.html"} < {
        p.name for p in (tmp_path / "out").iterdir()
    }
    (photos / "c.jpg").unlink()
    again = run_program("predict", *overrides, "accelerator=cpu", cwd=tmp_path, **network)
    assert (again.returncode, again.stderr) == (0, "")
    assert "skipped      3 that exist already" in again.stdout


def test_a_refusal_changes_nothing_in_the_output(tmp_path, photos):
    """Settings are compared before the model is loaded, which this command could not do without `network`."""
    output = run(tmp_path, photos)
    (output / "config.yaml").write_text("program: predict\ncheckpoint: model.pth\ninput: photos\n")
    before = written(output)
    overrides = (f"checkpoint={tmp_path / 'model.pth'}", f"input={photos}", f"output={output}", "scale=0.5")
    done = run_here("predict", *overrides, "accelerator=cpu", "precision=32-true", cwd=tmp_path)
    assert done.returncode == 2
    assert "made with another scale" in done.stderr
    after = written(output)
    assert {name: after[name] for name in before} == before
    assert "outcome.json" not in after
