"""Opening of image files with a limit on the number of reads, so that none keeps Pillow busy for minutes.

Pillow's parsers go through comments and empty segments of a file in small steps, in Python. A comment of
50 MB takes a minute, byte by byte, and in some formats the time grows with the square of the file's size.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
import PIL.ImageFile

from cocoseg.files import require_regular

_READS = 2**17  # reads that any file may take; a read takes at least 1 µs
_BYTES = 64  # bytes that further reads must have on average; PNG files in pieces of 1 kB have 200
_COMMENTS = 1000  # comments that a text format of PPM may have


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
    """Open an image of one of Pillow's `formats`, in a time that is at most proportional to the file's size.

    Raises:
        OSError: it can't be read, or is no regular file.
        ValueError: it would take too long. This, and all that Pillow raises, may also come within the block.
    """
    require_regular(path)
    # Pillow would map a file that it opens by name into memory, and read rotated TIFFs wrongly then.
    with _CountedReads(path) as file, PIL.Image.open(file, formats=formats) as image:
        is_text = image.format == "PPM" and image.tile[0][0] == "ppm_plain"
        if is_text and path.read_bytes().count(b"#") > _COMMENTS:
            raise ValueError("it has too many comments")
        yield image
