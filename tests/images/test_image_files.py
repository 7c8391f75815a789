import struct
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from cocoseg.errors import CocosegError
from cocoseg.images.image_files import BANDS, PAGES, UPPER_BITS, check_image, read_image

# --- checking


def test_check_image_takes_both_readings(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    for name in ("a.jpg", "a.png", "a.tif", "a.webp"):
        PIL.Image.new("RGB", (64, 48)).save(tmp_path / name, exif=exif)
        for size in ((64, 48), (48, 64)):
            assert check_image(tmp_path / name, *size)[:2] == ((64, 48), 6)
        with pytest.raises(CocosegError, match=r"the image is 64x48 .*says 48x48$"):
            check_image(tmp_path / name, 48, 48)


@pytest.mark.parametrize("orientation", [None, 1, 3])
def test_width_and_height_swapped_without_a_rotation(tmp_path: Path, orientation: int | None) -> None:
    exif = PIL.Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    PIL.Image.new("RGB", (64, 48)).save(tmp_path / "a.png", exif=exif)
    with pytest.raises(
        CocosegError, match=r"a\.png: the image is 64x48 .*says 48x64; width and height are swapped there"
    ):
        check_image(tmp_path / "a.png", 48, 64)


def test_check_image_reads_to_the_last_pixel(tmp_path: Path) -> None:
    """A JPEG is decoded at a fraction of its size, which must not hide a missing end."""
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[:-500])
    with pytest.raises(CocosegError, match=r"a\.jpg: not a readable image"):
        check_image(tmp_path / "a.jpg", 640, 480)


def test_formats_that_an_interpreter_would_read_are_refused(tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript; a file with such a header must not get that far."""
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
def test_all_errors_of_decoders_name_the_file(
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


def sixteen_bits(values: np.ndarray, color: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow doesn't write; its rows hold differences of neighbors."""
    height, width = values.shape[:2]
    rows = values.reshape(height, width, -1).astype(">u2").view(np.uint8).reshape(height, width, -1)
    rows = np.concatenate([rows[:, :1], rows[:, 1:] - rows[:, :-1]], 1).reshape(height, -1)
    data = zlib.compress(np.concatenate([np.ones((height, 1), np.uint8), rows], 1).tobytes())
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)),
        (b"IDAT", data),
        (b"IEND", b""),
    )
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


GRAY_ALPHA, COLOR, COLOR_ALPHA = 4, 2, 6  # of PNG


def deep(bits: int, *shape: int) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 2**bits, shape).astype(np.uint16)
    values.flat[:2] = 0, 2**bits - 1
    return values


@pytest.mark.parametrize("bits", [1, 4, 8, 10, 12, 16])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_gray_is_scaled_from_the_bits_in_use(tmp_path: Path, ending: str, bits: int) -> None:
    values, path = deep(bits, 20, 30), tmp_path / f"a.{ending}"
    PIL.Image.fromarray(values).save(path)
    found = check_image(path, 30, 20)
    assert found.bits == bits
    pixels = np.asarray(read_image(path, bits=bits))
    assert (pixels.min(), pixels.max()) == (0, 255)
    np.testing.assert_allclose(pixels[..., 0], values * (255 / (2**bits - 1)), atol=1)


@pytest.mark.parametrize("color", [COLOR, COLOR_ALPHA])
def test_color_of_16_bits_keeps_its_lower_ones(tmp_path: Path, color: int) -> None:
    values = deep(12, 20, 30, 3)
    alpha = np.full((20, 30, 1), 65535, np.uint16)
    stored = values if color == COLOR else np.concatenate([values, alpha], axis=2)
    (tmp_path / "a.png").write_bytes(sixteen_bits(stored, color))
    found = check_image(tmp_path / "a.png", 30, 20)
    assert found.bits == 12
    assert found.faults == []
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png", bits=12)), values >> 4)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), values >> 8)


def tiff(values: np.ndarray, order: str = "<", **tags: Any) -> bytes:
    """An uncompressed TIFF of one strip; `tags` by number, as in t338=[0]."""
    height, width, bands = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    size = values.dtype.itemsize * 8
    entries: dict[int, list[int]] = {256: [width], 257: [height], 258: [size] * bands, 259: [1]}
    entries |= {262: [2 if bands >= 3 else 1], 273: [8], 277: [bands], 278: [height], 279: [len(data)]}
    entries |= {int(key[1:]): value for key, value in tags.items()}
    start = 8 + len(data)
    extra, directory = b"", struct.pack(order + "H", len(entries))
    after = start + 2 + 12 * len(entries) + 4
    for tag, found in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(found)}I", *found)
        place = packed if len(found) == 1 else struct.pack(order + "I", after + len(extra))
        extra += packed if len(found) > 1 else b""
        directory += struct.pack(order + "HHI", tag, 4, len(found)) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return head + data + directory + bytes(4) + extra


@pytest.mark.parametrize("order", ["<", ">"])
def test_color_tiffs_of_16_bits(tmp_path: Path, order: str) -> None:
    values = deep(10, 20, 30, 3)
    (tmp_path / "a.tif").write_bytes(tiff(values, order))
    assert check_image(tmp_path / "a.tif", 30, 20).bits == 10
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.tif", bits=10)), values >> 2)


def test_gray_with_transparency_of_16_bits_loses_bits_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(sixteen_bits(deep(12, 20, 30, 2), GRAY_ALPHA))
    assert check_image(tmp_path / "a.png", 30, 20).faults == [UPPER_BITS]


@pytest.mark.parametrize(
    ("bands", "tags", "faults"),
    [
        (3, {}, []),
        (4, {}, [BANDS]),  # it is not called transparency
        (4, {"t338": [0]}, [BANDS]),
        (4, {"t338": [2]}, []),
        (5, {"t338": [0, 0]}, [BANDS]),
        (5, {"t338": [2, 0]}, [BANDS]),
        (4, {"t262": [5]}, []),  # CMYK
        (2, {"t338": [0]}, [BANDS]),
        (2, {"t338": [2]}, []),
    ],
)
def test_warning_about_bands_beyond_colors(
    tmp_path: Path, bands: int, tags: dict[str, list[int]], faults: list[str]
) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(np.zeros((20, 30, bands), np.uint8), **tags))
    assert check_image(tmp_path / "a.tif", 30, 20).faults == faults


def test_bands_that_pillow_can_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(np.zeros((20, 30, 8), np.uint16), t262=[1], t338=[0] * 7))
    with pytest.raises(CocosegError, match=r"a\.tif: not a readable image \(a TIFF whose bands"):
        check_image(tmp_path / "a.tif", 30, 20)


def test_warning_about_pages_beyond_the_first(tmp_path: Path) -> None:
    page = PIL.Image.new("L", (30, 20))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    assert check_image(tmp_path / "a.tif", 30, 20).faults == [PAGES]


def test_32_bits(tmp_path: Path) -> None:
    values = np.array([[0, 65536, 100_000]], dtype=np.int32)
    PIL.Image.fromarray(values).save(tmp_path / "a.tif")
    assert check_image(tmp_path / "a.tif", 3, 1).bits == 17
    assert np.asarray(read_image(tmp_path / "a.tif", bits=17))[0, :, 0].tolist() == [0, 128, 195]
    assert np.asarray(read_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_pixels_below_zero(tmp_path: Path, dtype: type) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(np.full((2, 3, 1), -5, dtype), t339=[2]))
    for read in (read_image, lambda path: check_image(path, 3, 2)):
        with pytest.raises(CocosegError, match=r"a\.tif: .*pixels below 0 have no known range"):
            read(tmp_path / "a.tif")


# --- EXIF rotation

# What each orientation asks for, as an independent numpy expression.
UPRIGHT = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.T,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].T,
    8: lambda pixels: np.rot90(pixels),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("ending", "orientation"), [*product(("png", "tif", "lzw"), UPRIGHT), ("png", 42), ("tif", 42)]
)
def test_both_readings(tmp_path: Path, ending: str, orientation: int, dtype: type) -> None:
    path, pixels = tmp_path / f"a.{ending}", np.arange(4 * 6).reshape(4, 6)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored = pixels.astype(np.uint8) if dtype is np.uint8 else (256 * pixels).astype(np.uint16)
    compression = {"compression": "tiff_lzw", "format": "TIFF"} if ending == "lzw" else {}
    PIL.Image.fromarray(stored).save(path, exif=exif, **compression)
    upright = UPRIGHT.get(orientation, UPRIGHT[1])(pixels)
    for turned, expected in ((False, pixels), (True, upright)):
        found = np.asarray(read_image(path, upright=turned))
        np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("ending", ["jpg", "webp", "avif", "mpo"])
def test_both_readings_of_photographs(tmp_path: Path, ending: str, orientation: int) -> None:
    pixels = np.kron(np.arange(0, 240, 20).reshape(3, 4), np.ones((16, 16))).astype(np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    several = {"save_all": True, "append_images": [PIL.Image.new("L", (64, 48))]} if ending == "mpo" else {}
    PIL.Image.fromarray(pixels).save(tmp_path / f"a.{ending}", exif=exif, quality=95, **several)
    for turned, expected in ((False, pixels), (True, UPRIGHT[orientation](pixels))):
        found = np.asarray(read_image(tmp_path / f"a.{ending}", upright=turned)).astype(int)
        assert np.abs(found - expected[..., None]).mean() < 3


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\xff" * 40])
def test_damaged_exif_data_are_ignored(tmp_path: Path, exif: bytes) -> None:
    PIL.Image.new("RGB", (16, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", upright=True).size == (16, 8)
    assert check_image(tmp_path / "a.jpg", 16, 8).orientation == 1


def test_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.new("1", (640, 480)).save(tmp_path / "a.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(CocosegError, match=r"a\.png: .*decompression bomb"):
        read_image(tmp_path / "a.png")


SLOW = {
    "comment, read byte by byte": b"P6\n#" + b"x" * 1_000_000 + b"\n8 6\n255\n" + bytes(144),
    "comments in text": b"P3\n8 6\n255\n" + b"#\n" * 20_000 + b"1 " * 144,
    "empty comments of a JPEG": b"\xff\xd8" + b"\xff\xfe\0\2" * 200_000 + b"\xff\xd9",
}


@pytest.mark.parametrize("content", SLOW.values(), ids=SLOW.keys())
def test_files_that_would_take_minutes_are_given_up(tmp_path: Path, content: bytes) -> None:
    """These files take a second; files 50 times as large took more than a minute."""
    (tmp_path / "a.ppm").write_bytes(content)
    for read in (read_image, lambda path: check_image(path, 8, 6)):
        with pytest.raises(CocosegError, match=r"a\.ppm: not a readable image \(.*too many"):
            read(tmp_path / "a.ppm")


def test_a_large_image_in_small_pieces(tmp_path: Path) -> None:
    """PNG in pieces of a kilobyte, GIF in pieces of 255 bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (1400, 1400, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png", compress_level=0)
    content = (tmp_path / "a.png").read_bytes()
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels), 0)
    parts = [data[start : start + 1000] for start in range(0, len(data), 1000)]
    pieces = [
        len(part).to_bytes(4, "big") + b"IDAT" + part + zlib.crc32(b"IDAT" + part).to_bytes(4, "big")
        for part in parts
    ]
    (tmp_path / "a.png").write_bytes(content[:33] + b"".join(pieces) + content[-12:])
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), pixels)
    PIL.Image.fromarray(pixels).convert("P").save(tmp_path / "a.gif")
    assert read_image(tmp_path / "a.gif").size == (1400, 1400)
