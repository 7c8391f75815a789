"""PNG files are compared with what other programs read from them."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.io import ImageReadMode, decode_image

from cocoseg import png

SAME = np.arange(256, dtype=np.uint8)
SPREAD = ((np.arange(256) * 2654435761 + 257) % 65536).astype(np.uint16)  # both bytes vary
PALETTE = bytes((7 * i + 13 * (i // 3)) % 256 for i in range(3 * 256))
KINDS = {"palette": (SAME, PALETTE), "16 bits": (SPREAD, None)}
STRIP = 1 << 15  # pixels that are compressed at a time

kinds = pytest.mark.parametrize("kind", KINDS)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    """What masks look like: ellipses on background."""
    random = np.random.default_rng(seed)
    mask, (y, x) = np.zeros((height, width), np.uint8), np.mgrid[:height, :width]
    for value in random.integers(1, 256, 12):
        cy, cx = random.uniform(0, height), random.uniform(0, width)
        ry, rx = random.uniform(3, height / 4), random.uniform(3, width / 4)
        mask[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = value
    return mask


def stripes(height: int, width: int) -> np.ndarray:
    return np.repeat((np.arange(height) % 251).astype(np.uint8)[:, None], width, axis=1)


def open_png(content: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(content), formats=("PNG",))


def check(mask: np.ndarray, kind: str) -> None:
    """Pillow reads the same pixels, and finds nothing wrong."""
    values, palette = KINDS[kind]
    content = png.encode(mask, values, palette)
    with open_png(content) as image:
        image.verify()
    with open_png(content) as image:
        assert image.mode == ("P" if palette else "I;16")
        pixels = np.asarray(image)
    assert pixels.dtype == values.dtype
    np.testing.assert_array_equal(pixels, values[mask])


def chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Type and content of each, as the format has them; nothing may be left over."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    found, position = [], 8
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        body = content[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", content, position + 8 + length)
        assert checksum == zlib.crc32(kind + body)
        found.append((kind, body))
        position += 12 + length
    assert position == len(content)
    return found


@kinds
@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (1, 1000),
        (1000, 1),
        (1, STRIP + 1),
        (STRIP + 1, 1),
        (2, STRIP),
        (3, STRIP // 2),
        (3, STRIP // 2 + 1),
        (1, 3 * STRIP),
        (300, 333),
    ],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
def test_sizes(size: tuple[int, int], kind: str) -> None:
    for mask in (noise(*size), stripes(*size), np.zeros(size, np.uint8), np.full(size, 255, np.uint8)):
        check(mask, kind)


@kinds
def test_runs(kind: str) -> None:
    check(blobs(240, 320), kind)


@kinds
def test_parts_of_other_arrays(kind: str) -> None:
    whole = noise(40, 60)
    for mask in (whole[3:20, 5:50], whole.T, whole[::-1, ::2], np.asfortranarray(whole)):
        check(mask, kind)


@kinds
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_mask(kind: str, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 40))
    value = st.one_of(st.sampled_from([0, 1, 255]), st.integers(0, 255))
    runs = data.draw(st.lists(st.tuples(value, st.integers(1, 60)), min_size=1, max_size=30))
    pixels = np.concatenate([np.full(length, value, np.uint8) for value, length in runs])
    check(np.resize(pixels, (height, width)), kind)


@pytest.mark.parametrize("kind", ["8 bits", "16 bits"])
def test_values_are_translated(kind: str) -> None:
    values = SAME[::-1].copy() if kind == "8 bits" else SPREAD
    mask = SAME.reshape(16, 16)
    with open_png(png.encode(mask, values)) as image:
        np.testing.assert_array_equal(np.asarray(image), values[mask])


def test_palette_of_256_entries() -> None:
    for mask in (noise(5, 5), np.zeros((5, 5), np.uint8)):  # whatever is used of it
        with open_png(png.encode(mask, SAME, PALETTE)) as image:
            assert bytes(image.getpalette()) == PALETTE
            rgb = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(rgb, np.frombuffer(PALETTE, np.uint8).reshape(256, 3)[mask])


@pytest.mark.parametrize("mask", [noise(30, 50), blobs(200, 300), noise(1, 1), noise(9, 1)])
def test_torchvision_reads_the_same_colours(mask: np.ndarray) -> None:
    content = torch.frombuffer(bytearray(png.encode(mask, SAME, PALETTE)), dtype=torch.uint8)
    colors = np.frombuffer(PALETTE, np.uint8).reshape(256, 3)[mask]
    found = decode_image(content, ImageReadMode.RGB).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, colors)


@kinds
def test_chunks(kind: str) -> None:
    values, palette = KINDS[kind]
    mask = noise(150, 333)  # more than one strip
    found = chunks(png.encode(mask, values, palette))
    assert [name for name, _ in found] == [b"IHDR", *[b"PLTE"] * (palette is not None), b"IDAT", b"IEND"]
    content = dict(found)
    bits, color_type = (8, 3) if palette else (16, 0)
    assert content[b"IHDR"] == struct.pack(">IIBBBBB", 333, 150, bits, color_type, 0, 0, 0)
    assert content[b"IEND"] == b""
    unpacked = zlib.decompressobj()
    assert len(unpacked.decompress(content[b"IDAT"])) == 150 * (1 + 333 * bits // 8)
    assert unpacked.eof
    assert unpacked.unused_data == b""


@pytest.mark.parametrize(
    ("values", "palette"),
    [(SAME, PALETTE), (SAME.astype(np.uint16), None), (np.arange(0, 25600, 100, dtype=np.uint16), None)],
    ids=["palette", "ids", "ids times 100"],
)
def test_small_where_runs_are_long(values: np.ndarray, palette: bytes | None) -> None:
    ours = pillows = 0
    for mask in (blobs(480, 640, seed) for seed in range(4)):
        image = PIL.Image.fromarray(values[mask])
        if palette:
            image.putpalette(palette)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=6)
        ours += len(png.encode(mask, values, palette))
        pillows += len(buffer.getvalue())
    assert ours <= 1.3 * pillows


@kinds
def test_same_bytes_each_time(kind: str) -> None:
    mask = blobs(120, 160)
    assert png.encode(mask, *KINDS[kind]) == png.encode(mask.copy(), *KINDS[kind])
