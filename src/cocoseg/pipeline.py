"""Pictures on their way from file to file: decoded and written by threads, beside the network.

Decode and resize (threads) -> batches of equal inputs -> network and arg-max -> mask, overlay, small pictures
(threads). How much is on its way at a time is bounded, in pictures and in pixels.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from cocoseg.encoding import MaskEncoding
from cocoseg.errors import CocosegError
from cocoseg.files import is_for_its_name, write_bytes
from cocoseg.find_images import Picture, key
from cocoseg.gallery import FOLDER, has_pictures, write_pictures
from cocoseg.images import read_upright, size_of
from cocoseg.manifest import Entry
from cocoseg.overlay import overlay, with_legend
from cocoseg.pixels import to_tensor
from cocoseg.predictor import Predictor

PIXELS = 2**26  # of pictures on their way and of the network's inputs, unless a single one has more
BATCH_PIXELS = 2**22  # of the network's input
LONGEST = 2048  # pixels: longer side of an overlay


@dataclass(frozen=True)
class Places:
    """Where the results of a picture go.

    Attributes:
        output: the folder of all.
        overlay, gallery: whether overlays, and small pictures for the gallery, are written.
    """

    output: Path
    overlay: bool
    gallery: bool

    @property
    def masks(self) -> Path:
        return self.output / "masks"

    @property
    def overlays(self) -> Path:
        return self.output / "overlays"

    def make(self) -> None:
        """Make the folders, so that what can't be written later on is for a file's own name.

        Raises:
            CocosegError: one can't be made.
        """
        wanted = {self.masks: True, self.overlays: self.overlay, self.output / FOLDER: self.gallery}
        for folder in (folder for folder, is_wanted in wanted.items() if is_wanted):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CocosegError(f"{folder}: can't be written ({error.strerror})") from error

    def mask(self, name: str) -> Path:
        return self.masks / f"{name}.png"

    def overlaid(self, name: str) -> Path:
        return self.overlays / f"{name}.jpg"

    def are_there(self, name: str) -> bool:
        """Whether all that is asked for was written under a name."""
        return (
            self.mask(name).is_file()
            and not (self.overlay and not self.overlaid(name).is_file())
            and not (self.gallery and not has_pictures(self.output, name))
        )


@dataclass
class _Decoded:
    """A picture that was read.

    Attributes:
        inputs: what the network is to see, a batch of one at each scale.
        size: its own height and width, upright.
        look: to draw on, its sides LONGEST at most; None where nothing is drawn.
        file: size and time of change of its file.
    """

    picture: Picture
    inputs: list[Tensor]
    size: tuple[int, int]
    look: PIL.Image.Image | None
    file: tuple[int, int]


class Pipeline:
    """Reads pictures, predicts and writes.

    Args:
        predictor: what is predicted, and how.
        encoding: of the masks.
        places: where results go.
        names: of the results of each picture, see `find_images.name_results`.
        batch_size: pictures that the network is given at a time; fewer where they are large.
        workers: threads that read, and as many that write.
    """

    def __init__(
        self,
        predictor: Predictor,
        encoding: MaskEncoding,
        places: Places,
        names: dict[Picture, str],
        *,
        batch_size: int,
        workers: int,
    ):
        self.predictor = predictor
        self.encoding = encoding
        self.places = places
        self.names = names
        self.batch_size = batch_size
        self.workers = workers

    def run(self, pictures: Sequence[Picture]) -> Iterator[tuple[Picture, Entry | str]]:
        """Yield what became of each picture, in any order: its entry, or the sentence why it is left out.

        Raises:
            CocosegError: results can't be written, or the device's memory ran out.
        """
        waiting = deque(pictures)
        on_their_way: dict[Picture, int] = {}  # and how many pixels they have
        decoding: dict[Future[_Decoded], Picture] = {}
        batches: dict[tuple[int, ...], list[_Decoded]] = {}  # by the shape of their inputs
        writing: dict[Future[Entry], Picture] = {}
        readers, writers = ThreadPoolExecutor(self.workers), ThreadPoolExecutor(self.workers)
        try:
            while waiting or on_their_way:
                while waiting and len(decoding) < self.workers + self.batch_size:
                    pixels = self._pixels(waiting[0])
                    if on_their_way and sum(on_their_way.values()) + pixels > PIXELS:
                        break
                    picture = waiting.popleft()
                    on_their_way[picture] = pixels
                    decoding[readers.submit(self._decode, picture)] = picture
                # One that is full, or the fullest where no more can come before something is finished.
                shape = max(batches, key=lambda shape: len(batches[shape]) / self._limit(shape), default=None)
                if shape is not None and (len(batches[shape]) >= self._limit(shape) or not decoding):
                    for decoded, mask in self._predict(batches.pop(shape)):
                        writing[writers.submit(self._write, decoded, mask)] = decoded.picture
                elif decoding:
                    for future in wait(decoding, return_when=FIRST_COMPLETED).done:
                        picture = decoding.pop(future)
                        try:
                            decoded = future.result()
                        except (CocosegError, OSError, MemoryError, RuntimeError) as error:
                            if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
                                raise
                            del on_their_way[picture]
                            short = f"{picture.path}: not enough memory to read it"
                            yield picture, short if _is_out_of_memory(error) else str(error)
                        else:
                            batches.setdefault(tuple(decoded.inputs[0].shape), []).append(decoded)
                blocked = (not decoding and not batches) or len(writing) > 2 * self.workers + self.batch_size
                for future in wait(writing, None if blocked else 0, FIRST_COMPLETED).done:
                    picture = writing.pop(future)
                    del on_their_way[picture]
                    try:
                        entry = future.result()
                    except CocosegError as error:
                        if not is_for_its_name(error):
                            raise
                        yield picture, str(error)
                    else:
                        yield picture, entry
        finally:
            readers.shutdown(cancel_futures=True)
            writers.shutdown(cancel_futures=True)

    def _pixels(self, picture: Picture) -> int:
        """Its own, from the file's header, and those of the network's inputs; 0 where it can't be read."""
        size = size_of(picture.path)
        if size is None:
            return 0
        width, height = size
        return width * height + self.predictor.input_pixels((height, width))

    def _limit(self, shape: tuple[int, ...]) -> int:
        """How many inputs of a shape are a full batch."""
        return max(1, min(self.batch_size, BATCH_PIXELS // (shape[-2] * shape[-1])))

    def _decode(self, picture: Picture) -> _Decoded:
        stat = picture.path.stat()
        image = read_upright(picture.path)
        size = image.height, image.width
        inputs = self.predictor.inputs(to_tensor(image)[None])
        look = None
        if self.places.overlay or self.places.gallery:
            look = image
            look.thumbnail((LONGEST, LONGEST), PIL.Image.Resampling.BOX)
        return _Decoded(picture, inputs, size, look, (stat.st_size, stat.st_mtime_ns))

    def _predict(self, batch: Sequence[_Decoded]) -> Iterator[tuple[_Decoded, np.ndarray]]:
        inputs = [torch.cat(parts) for parts in zip(*(decoded.inputs for decoded in batch), strict=True)]
        try:
            masks = self.predictor.masks(inputs, [decoded.size for decoded in batch])
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise CocosegError("out of memory: lower batch_size, scale, or the sides of tile") from error
        for decoded, mask in zip(batch, masks, strict=True):
            decoded.inputs = []
            yield decoded, mask.cpu().numpy()

    def _write(self, decoded: _Decoded, mask: np.ndarray) -> Entry:
        places, labels, look = self.places, self.encoding.labels, decoded.look
        name = self.names[decoded.picture]
        self.encoding.write(mask, places.mask(name))
        if look is not None:
            image = np.asarray(look)
            small = np.array(PIL.Image.fromarray(mask).resize(look.size, PIL.Image.Resampling.NEAREST))
            if places.overlay:
                over = PIL.Image.fromarray(overlay(image, small, labels))
                buffer = BytesIO()
                with_legend(over, mask, labels).save(buffer, format="JPEG", quality=90)
                write_bytes(places.overlaid(name), buffer.getvalue())
            if places.gallery:
                write_pictures(places.output, name, image, small, labels)
        counts = np.bincount(mask.ravel(), minlength=256)
        return Entry(
            image=key(decoded.picture, places.output),
            name=name,
            file_bytes=decoded.file[0],
            changed_ns=decoded.file[1],
            height=mask.shape[0],
            width=mask.shape[1],
            pixels={index: int(counts[index]) for index in np.flatnonzero(counts).tolist()},
        )


def _is_out_of_memory(error: Exception) -> bool:
    """On any device; on a CPU torch raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
