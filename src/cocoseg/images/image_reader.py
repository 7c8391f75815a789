"""A file that Pillow reads an image from, and that ends the reading of one that would take minutes.

Pillow's parsers go through comments and empty segments of a file in small steps, in Python: a comment of
50 MB takes a minute, byte by byte, and some time grows with the square of a file's size.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
import PIL.ImageFile

from cocoseg.files import require_regular

_READS = 2**17  # reads that any file may take; one takes 1 µs and more
_BYTES = 64  # bytes that further reads must have on average; PNG files in pieces of 1 kB have 200
_COMMENTS = 1000  # comments in an image of the text formats of PPM


class _CountedReads(io.BufferedReader):
    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))
        self._left = _READS + path.stat().st_size // _BYTES

    def read(self, size: int | None = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError("it is made of too many small pieces")
        return super().read(size)


@contextmanager
def open_bounded(path: Path, formats: tuple[str, ...]) -> Iterator[PIL.ImageFile.ImageFile]:
    """Open an image of one of these formats of Pillow's, in a time that grows with the file's size at most.

    Raises:
        OSError: it can't be read, or is no regular file.
        ValueError: it would take too long; as everything else that Pillow raises, within the block too.
    """
    require_regular(path)
    # Pillow would map a file that it opens by name into memory, and read rotated TIFFs wrongly then.
    with _CountedReads(path) as file, PIL.Image.open(file, formats=formats) as image:
        is_text = image.format == "PPM" and image.tile[0][0] == "ppm_plain"
        if is_text and path.read_bytes().count(b"#") > _COMMENTS:
            raise ValueError("it has too many comments")
        yield image
