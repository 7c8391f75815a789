from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from cocoseg.errors import CocosegError
from cocoseg.inference import probabilities as probabilities_module
from cocoseg.inference import tiling, upsampling
from cocoseg.inference.model import SegmentationModel
from cocoseg.inference.predictor import Predictor
from cocoseg.inference.probabilities import Probabilities, confidences
from cocoseg.inference.upsampling import enlarged_argmax, neighbors
from cocoseg.networks.pixels import normalize
from cocoseg.networks.spec import ModelSpec
from cocoseg.networks.unet import UNet
from tiny import LABELS, NETWORK, Reads, tiny_unet


def model(net: nn.Module | None = None, image_size: tuple[int, int] = (32, 48)) -> SegmentationModel:
    return SegmentationModel(net or varied_unet(), ModelSpec(NETWORK, LABELS, image_size), None)


def colored_regions(height: int, width: int, images: int = 1, seed: int = 0) -> Tensor:
    """Images of smooth colored regions, (B, 3, h, w) uint8."""
    coarse = torch.rand(images, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, size=(height, width), mode="bilinear") * 255).to(torch.uint8)


def varied_unet() -> UNet:
    """A network that predicts each class somewhere in `colored_regions`, with large differences of logits."""
    net = tiny_unet().eval()
    with torch.no_grad():
        net.head.weight *= 30
        net.head.bias -= net(normalize(colored_regions(64, 64))).mean((0, 2, 3))
    return net


def red_green_blue(height: int = 60, width: int = 90) -> np.ndarray:
    """An image of three stripes, for which `Reads` predicts 0, 1 and 2: (H, W, 3) uint8."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for index in range(3):
        image[:, width // 3 * index : width // 3 * (index + 1), index] = 255
    return image


def stripes(height: int = 60, width: int = 90) -> np.ndarray:
    return np.repeat(np.arange(3, dtype=np.uint8), width // 3)[None].repeat(height, 0)


# ---- the whole image


def test_images_are_resized_as_in_training_and_logits_are_enlarged():
    net, image = varied_unet(), colored_regions(70, 50, images=3)

    mask = Predictor(model(net))(image)

    small = normalize(tv.resize(image, [32, 48], antialias=True))
    logits = F.interpolate(net(small), size=(70, 50), mode="bilinear", align_corners=False)
    assert mask.shape == (3, 70, 50)
    assert mask.dtype == torch.uint8
    assert len(mask.unique()) > 1
    assert (mask == logits.argmax(1)).float().mean() > 0.999


@pytest.mark.parametrize("size", [(70, 50), (500, 333), (32, 48), (20, 48), (9, 700)], ids=str)
def test_the_input_equals_that_of_training(size):
    """The uint8 pixels equal those of the data set, which torchvision resizes."""
    image = colored_regions(*size, images=2)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = Predictor(model()).resize(image.contiguous(memory_format=layout))
        assert torch.equal(found, tv.resize(image, [32, 48], antialias=True))


def test_images_of_several_sizes_are_one_batch():
    predictor = Predictor(model())
    images = [colored_regions(20, 90, seed=1), colored_regions(64, 31, seed=2)]
    batch = torch.cat([predictor.resize(image) for image in images])
    for pending, image in zip(predictor.masks(batch, [(20, 90), (64, 31)]), images, strict=True):
        assert (pending.mask() == predictor(image)[0]).float().mean() > 0.999


def test_scale_one_gives_the_network_the_images_own_pixels():
    net, image = varied_unet(), colored_regions(70, 50)
    assert (Predictor(model(net), scale=1)(image) == net(normalize(image)).argmax(1)).float().mean() > 0.999
    assert Predictor(model(net), scale=0.5).resize(image).shape == (1, 3, 35, 25)
    assert Predictor(model(net), scale=0.01).resize(image).shape == (1, 3, 2, 2)


# ---- tiles


@pytest.mark.parametrize(("height", "width", "scale"), [(300, 200, 1), (200, 300, 0.7), (140, 200, 1.5)])
def test_tiles_give_the_same_mask_as_the_whole_image(height, width, scale):
    net, image = varied_unet(), colored_regions(height, width)

    whole = Predictor(model(net), scale=scale, tile=False)(image)
    tiled = Predictor(model(net), scale=scale, tile=[96, 128])(image)

    assert len(whole.unique()) > 1
    assert (tiled == whole).float().mean() > 0.995


def test_tiles_change_nothing_for_a_network_without_context():
    image = torch.from_numpy(red_green_blue(201, 300)).permute(2, 0, 1)[None]
    tiled = Predictor(model(Reads()), scale=1, tile=(64, 64))(image)[0]
    np.testing.assert_array_equal(tiled, stripes(201, 300))


def record_input_sizes(net: nn.Module) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    net.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[-2:])))
    return shapes


def test_tile_auto_cuts_inputs_that_are_too_large(monkeypatch):
    monkeypatch.setattr(tiling, "LARGEST_INPUT", 150 * 150)
    monkeypatch.setattr(tiling, "TILE", 96)
    net = varied_unet()
    shapes = record_input_sizes(net)

    Predictor(model(net), scale=1)(colored_regions(150, 150))
    assert shapes == [(150, 150)]
    shapes.clear()
    Predictor(model(net), scale=1)(colored_regions(151, 150))
    assert len(shapes) > 1
    assert max(max(shape) for shape in shapes) < 96 + 32
    shapes.clear()
    Predictor(model(net), scale=1, tile=False)(colored_regions(151, 150))
    assert shapes == [(151, 150)]
    shapes.clear()
    Predictor(model(net, image_size=(200, 200)))(colored_regions(90, 90))  # training had room for it
    assert shapes == [(200, 200)]


# ---- mirror images


def test_flip_makes_predictions_symmetric():
    image = colored_regions(40, 60)
    predictor = Predictor(model(), flip=True)
    mirrored = predictor(image.flip(-1)).flip(-1)
    assert (predictor(image) == mirrored).float().mean() > 0.999
    assert not torch.equal(Predictor(model())(image.flip(-1)).flip(-1), mirrored)


def test_flip_averages_probabilities():
    net, image = varied_unet(), colored_regions(32, 48)
    mask = Predictor(model(net), flip=True)(image)
    x = normalize(image)
    expected = net(x).softmax(1) + net(x.flip(-1)).softmax(1).flip(-1)
    assert (mask == expected.argmax(1)).float().mean() > 0.999


def test_an_image_much_smaller_than_its_input_in_tiles():
    image = torch.from_numpy(red_green_blue(6, 9)).permute(2, 0, 1)[None]
    tiled = Predictor(model(Reads()), scale=100, tile=(64, 64))(image)[0]
    np.testing.assert_array_equal(tiled, stripes(6, 9))


def test_flip_in_tiles():
    net, image = varied_unet(), colored_regions(200, 280)
    whole, tiled = (Predictor(model(net), scale=1, tile=tile, flip=True)(image) for tile in (False, [96, 96]))
    assert (whole == tiled).float().mean() > 0.99


# ---- probabilities


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"flip": True},
        {"scale": 1},
        {"scale": 1, "tile": [64, 96]},
        {"scale": 2, "tile": [64, 64], "flip": True},
    ],
    ids=str,
)
def test_the_arg_max_of_the_probabilities_is_the_mask(settings):
    net, image = model(), colored_regions(80, 110, images=2)
    mask, probabilities = net.predict(image, **settings, probabilities=True)
    np.testing.assert_array_equal(mask, net.predict(image, **settings))
    assert (probabilities.dtype, probabilities.shape) == (np.float16, (2, 3, 80, 110))
    np.testing.assert_array_equal(probabilities.argmax(1), mask)
    np.testing.assert_allclose(probabilities.astype(np.float32).sum(1), 1, atol=2e-3)


@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_are_computed_from_enlarged_scores(flip):
    net, image = varied_unet(), colored_regions(70, 50)
    _, probabilities = model(net).predict(image[0], flip=flip, probabilities=True)

    x = normalize(tv.resize(image, [32, 48], antialias=True))
    scores = (net(x).softmax(1) + net(x.flip(-1)).softmax(1).flip(-1)) / 2 if flip else net(x)
    expected = F.interpolate(scores, size=(70, 50), mode="bilinear", align_corners=False)[0]
    expected = expected if flip else expected.softmax(0)
    np.testing.assert_allclose(probabilities, expected.detach(), atol=1e-3)


def test_probabilities_of_tiles_equal_those_of_the_whole_image():
    image = red_green_blue(201, 300)
    whole, tiled = (
        model(Reads()).predict(image, scale=1, tile=tile, probabilities=True)[1] for tile in (False, (64, 64))
    )
    np.testing.assert_array_equal(whole, tiled)


def test_probabilities_do_not_depend_on_the_size_of_blocks(monkeypatch):
    net, image = model(), colored_regions(70, 50)
    whole = net.predict(image, probabilities=True)
    monkeypatch.setattr(upsampling, "CHUNK", 3 * 50 * 7)  # size of seven rows
    for ours, expected in zip(net.predict(image, probabilities=True), whole, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("most", "rows"),
    [(probabilities_module.SAMPLED, range(21)), (3 * 35 * 7, [1, 4, 7, 10, 13, 16, 19]), (9, [10])],
)
def test_confidences_are_computed_from_enlarged_logits(monkeypatch, most, rows):
    monkeypatch.setattr(probabilities_module, "SAMPLED", most)
    logits = 4 * torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    found, chosen = confidences(logits, enlarged_argmax(logits, (21, 35)))
    assert list(range(21))[chosen] == list(rows)
    expected = F.interpolate(logits[None], size=(21, 35), mode="bilinear")[0].softmax(0).amax(0)
    np.testing.assert_allclose(found, expected[chosen], atol=1e-5)


def test_rounding_does_not_change_the_winner():
    """Two probabilities close to 0.5 are the same float16."""
    scores = torch.tensor([0.0, 1e-5]).view(2, 1, 1)
    found = Probabilities((1, 1), 2, keeps_all=True, from_logits=True)
    near = neighbors((1, 1), (1, 1), torch.device("cpu"))
    found.fill(scores, *near, torch.ones(1, 1, dtype=torch.uint8))
    assert found.by_class[:, 0, 0].tolist() == [0.5, np.nextafter(np.float16(0.5), np.float16(1))]
    assert found.confidence.tolist() == [[128]]


def test_too_many_probabilities_are_refused(monkeypatch):
    monkeypatch.setattr(probabilities_module, "LIMIT", 2 * 3 * 60 * 90 - 1)
    with pytest.raises(CocosegError, match=r"3 classes for 90x60 pixels would take 0\.0 GB, more than"):
        model(Reads()).predict(red_green_blue(), probabilities=True)
    (pair,) = model(Reads()).predict([red_green_blue(30)], probabilities=True)
    assert pair[1].shape == (3, 30, 90)


# ---- `predict`


@pytest.mark.parametrize(
    "image",
    [
        red_green_blue(),
        red_green_blue().astype(np.uint16) * 257,
        red_green_blue() / np.float32(255),
        red_green_blue() / 255,
        red_green_blue()[::-1],
        np.asarray(PIL.Image.fromarray(red_green_blue())),
        PIL.Image.fromarray(red_green_blue()),
        PIL.Image.fromarray(red_green_blue()).convert("RGBA"),
        torch.from_numpy(red_green_blue()).permute(2, 0, 1),
        torch.from_numpy(red_green_blue()).permute(2, 0, 1) / 255,
    ],
    ids=["uint8", "uint16", "float32", "float64", "view", "locked", "PIL", "RGBA", "tensor", "float tensor"],
)
@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_predict_takes_any_image(image):
    mask = model(Reads(), image_size=(60, 90)).predict(image)
    assert (type(mask), mask.dtype, mask.shape) == (np.ndarray, np.uint8, (60, 90))
    np.testing.assert_array_equal(mask, stripes())


def test_predict_takes_batches_gray_images_and_paths(tmp_path: Path):
    net = model()
    gray = red_green_blue()[..., 1]
    PIL.Image.fromarray(gray).save(tmp_path / "a.png")

    mask = net.predict(gray)

    np.testing.assert_array_equal(mask, net.predict(np.stack([gray] * 3, -1)))
    np.testing.assert_array_equal(mask, net.predict(tmp_path / "a.png"))
    np.testing.assert_array_equal(mask, net.predict(str(tmp_path / "a.png")))
    batch = torch.from_numpy(np.stack([gray] * 3)).expand(2, -1, -1, -1)
    assert net.predict(batch).shape == (2, 60, 90)


def test_predict_takes_a_list_of_any_images():
    net = model()
    images = [red_green_blue(), PIL.Image.fromarray(red_green_blue(20, 33)), torch.zeros(2, 3, 8, 9)]
    masks = net.predict(images, flip=True)
    assert [mask.shape for mask in masks] == [(60, 90), (20, 33), (2, 8, 9)]
    for mask, image in zip(masks, images, strict=True):
        np.testing.assert_array_equal(mask, net.predict(image, flip=True))
    assert net.predict([]) == []


@pytest.mark.parametrize(("bits", "top"), [(12, 4095), (None, 65535), (16, 65535)])
def test_predict_scales_values_of_the_models_bits(tmp_path: Path, bits: int | None, top: int):
    """Half of the range is as bright as 128 of 255, from any kind of image."""
    net = SegmentationModel(varied_unet(), ModelSpec(NETWORK, LABELS, (32, 48), bits=bits), None)
    values = np.full((32, 48), top // 2 + 1, np.uint16)
    values[:, :9] = 0
    PIL.Image.fromarray(values).save(tmp_path / "a.png")
    expected = net.predict(np.where(values > 0, 128, 0).astype(np.uint8))
    in_color = np.stack([values] * 3, -1)
    tensor = torch.from_numpy(in_color).permute(2, 0, 1)
    for image in (values, in_color, tensor, tmp_path / "a.png", PIL.Image.open(tmp_path / "a.png")):
        np.testing.assert_array_equal(net.predict(image), expected)


@pytest.mark.parametrize(("exif", "turns"), [(None, -1), ("apply", -1), ("ignore", 0)])
def test_predict_turns_files_as_training_images_were(tmp_path: Path, exif: str | None, turns: int):
    tag = PIL.Image.Exif()
    tag[0x0112] = 6
    PIL.Image.fromarray(red_green_blue()).save(tmp_path / "a.png", exif=tag)
    net = SegmentationModel(Reads(), ModelSpec(NETWORK, LABELS, (60, 90), exif=exif), None)
    np.testing.assert_array_equal(net.predict(tmp_path / "a.png"), np.rot90(stripes(), turns))


def test_predict_follows_the_models_precision():
    net, image = model().bfloat16(), red_green_blue()
    seen_dtypes = []
    net.net.register_forward_pre_hook(lambda _, inputs: seen_dtypes.append(inputs[0].dtype))
    assert net.predict(image).shape == (60, 90)
    assert seen_dtypes == [torch.bfloat16]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 60, 90), np.uint8), r"\(3, 60, 90\) is no image"),
        (np.zeros((60, 90, 4), np.uint8), r"\(60, 90, 4\) is no image"),
        (np.zeros((0, 90), np.uint8), r"\(0, 90\) is no image"),
        (np.zeros((60, 90), np.int64), "int64 has no known range"),
        (np.full((60, 90), 200.0), "floats from 200 to 200"),
        (np.full((60, 90), -0.1), "must lie in 0 … 1"),
        (np.full((60, 90), np.nan), "must lie in 0 … 1"),
        (torch.zeros(60, 90, 3, dtype=torch.uint8), r"\(60, 90, 3\) is no image"),
        (torch.zeros(1, 60, 90), r"\(1, 60, 90\) is no image"),
        (7, "int is no image"),
        (PIL.Image.new("F", (3, 2)), "floating-point pixels have no known range"),
        (PIL.Image.new("I", (3, 2), -1), "pixels below 0 have no known range"),
        ("nowhere.png", r"nowhere\.png: the image is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_input_that_is_no_image_is_refused(image, message):
    with pytest.raises(CocosegError, match=message):
        model(Reads()).predict(image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0}, "scale is 0"),
        ({"scale": 1000}, "scale is 1000"),
        ({"tile": "always"}, "tile is 'always'"),
        ({"tile": True}, "tile is true"),
        ({"tile": 512}, "tile is 512"),
        ({"tile": [512]}, r"tile is \[512\]"),
        ({"tile": [512, 8]}, "from 64 pixels"),
        ({"tile": [512.0, 512]}, r"tile is \[512.0,512\]"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(CocosegError, match=message):
        Predictor(model(), **settings)
