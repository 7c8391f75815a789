import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from cocoseg.errors import CocosegError
from cocoseg.preparation.image_files import check_image, read_image, read_upright

# --- checking


def test_check_image_ignores_exif_rotation(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    PIL.Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg", exif=exif)
    check_image(tmp_path / "a.jpg", 64, 48)
    with pytest.raises(CocosegError, match=r"a\.jpg: the image is 64x48 .*says 48x64"):
        check_image(tmp_path / "a.jpg", 48, 64)


def test_check_image_reads_to_the_last_pixel(tmp_path: Path) -> None:
    """A JPEG is decoded at a fraction of its size, which must not hide a missing end."""
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[:-500])
    with pytest.raises(CocosegError, match=r"a\.jpg: not a readable image"):
        check_image(tmp_path / "a.jpg", 640, 480)


def test_formats_that_an_interpreter_would_read_are_refused(tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript; its header alone must not get that far."""
    PIL.Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg", format="EPS")
    for read in (read_image, lambda path: check_image(path, 64, 48)):
        with pytest.raises(CocosegError, match=r"a\.jpg: not a readable image"):
            read(tmp_path / "a.jpg")


def test_an_image_of_another_size_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load", None)
    with pytest.raises(CocosegError, match=r"a\.png: the image is 64x48"):
        check_image(tmp_path / "a.png", 5, 5)


@pytest.mark.parametrize("error", [struct.error("short"), IndexError(3), KeyError("x"), zlib.error("bad")])
def test_whatever_a_decoder_raises_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(_: PIL.Image.Image) -> None:
        raise error

    PIL.Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load", load)
    for read in (read_image, lambda path: check_image(path, 64, 48)):
        with pytest.raises(CocosegError, match=r"a\.png: not a readable image"):
            read(tmp_path / "a.png")


# --- reading


def read_back(path: Path, image: PIL.Image.Image, **options: Any) -> np.ndarray:
    image.save(path, **options)
    read = read_image(path)
    assert read.mode == "RGB"
    assert read.size == image.size
    return np.asarray(read).astype(int)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bits_are_scaled(tmp_path: Path, ending: str) -> None:
    deep = np.array([[0, 255, 256, 0x8000, 0xFF00, 65535]], dtype=np.uint16)
    pixels = read_back(tmp_path / f"a.{ending}", PIL.Image.fromarray(deep))
    np.testing.assert_allclose(pixels[0], np.repeat((deep[0] / 257)[:, None], 3, axis=1), atol=1)


def test_palette(tmp_path: Path) -> None:
    image = PIL.Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0])
    image.putdata([1, 0, 1])
    expected = [[[200, 100, 50], [10, 20, 30], [200, 100, 50]]]
    assert read_back(tmp_path / "a.png", image).tolist() == expected
    assert read_back(tmp_path / "b.png", image, transparency=0).tolist() == expected


def test_alpha_is_dropped(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 0], [200, 100, 50, 255], [1, 2, 3, 128]]], dtype=np.uint8)
    expected = pixels[..., :3].astype(int)
    np.testing.assert_array_equal(read_back(tmp_path / "a.png", PIL.Image.fromarray(pixels)), expected)


def test_cmyk(tmp_path: Path) -> None:
    image = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    pixels = read_back(tmp_path / "a.jpg", image, quality=95)
    assert np.abs(pixels - [255, 0, 0]).max() <= 4


def test_pixels_without_a_range(tmp_path: Path) -> None:
    PIL.Image.new("F", (3, 2)).save(tmp_path / "a.tif")
    with pytest.raises(CocosegError, match=r"a\.tif: "):
        read_image(tmp_path / "a.tif")


# --- as a viewer shows it


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("ending", "orientation", "turns"),
    [("png", 1, 0), ("png", 3, 2), ("png", 6, -1), ("png", 8, 1), ("png", 42, 0), ("tif", 3, 2)],
)
def test_upright(tmp_path: Path, ending: str, orientation: int, turns: int, dtype: type) -> None:
    path, pixels = tmp_path / f"a.{ending}", np.arange(4 * 6).reshape(4, 6)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored = pixels.astype(np.uint8) if dtype is np.uint8 else (256 * pixels).astype(np.uint16)
    PIL.Image.fromarray(stored).save(path, exif=exif)
    expected = np.repeat(np.rot90(pixels, turns)[..., None], 3, axis=2)
    np.testing.assert_array_equal(np.asarray(read_upright(path)), expected)
    assert read_image(path).size == (6, 4)


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\xff" * 40])
def test_damaged_exif_data_are_ignored(tmp_path: Path, exif: bytes) -> None:
    PIL.Image.new("RGB", (16, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_upright(tmp_path / "a.jpg").size == (16, 8)


def test_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.new("1", (640, 480)).save(tmp_path / "a.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(CocosegError, match=r"a\.png: .*decompression bomb"):
        read_upright(tmp_path / "a.png")
