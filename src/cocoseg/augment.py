"""Augmentation of whole batches, on whatever device they are on.

Everything geometric is one sampling per image, everything about colour one 3x3 matrix, so that a batch
costs a handful of passes over its memory. What is random is drawn on the CPU, from a generator of its own, so
that all devices do the same.
"""

import math
from collections.abc import Sequence
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cocoseg.config import AugmentConfig
from cocoseg.labels import IGNORE_INDEX
from cocoseg.pixels import normalised
from cocoseg.spec import MEAN, STD

GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as Pillow and torchvision have it
# RGB -> YIQ (FCC NTSC): hues turn around the grey axis, so that a turn is a matrix.
YIQ = (GREY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
BLUR_RADIUS = 3  # pixels
BLUR_SIGMA = (0.3, 1.5)  # pixels
FULL_SIZE_FROM = 0.6  # progress of the run
MULTIPLE = 16  # pixels: other sizes a UNet would pad
HOLE = (0.1, 0.4)  # height and width of a hole, as a share of the image's
CLASSES = 256  # that a mask of bytes has room for
SEEN_WITHIN = 0.5  # the middle part of a crop, in height and width, where a rare class is to be seen
CROP_SEED = 1013904223  # added to that of all else

COLOR = ("brightness", "contrast", "saturation", "hue", "greyscale")
# The numbers that are drawn for each image, beside one for each class, whatever is switched on: switching one
# transform off leaves the others as they were.
DRAWS = (
    *("flip", "scale", "across", "down", "rotate"),
    *COLOR,
    *("blur", "sigma", "mix", "hole", "hole_height", "hole_width", "hole_top", "hole_left"),
)
# What no strength applies to as a factor.
NOT_SCALED = ("scale", "start_size", "start_strength", "end_strength")


class Augment:
    """Random transforms of the images of a batch, each with numbers of its own.

    A call maps image (B, 3, h, w) uint8 RGB and mask (B, h, w) uint8 to image (B, 3, H, W) float32,
    normalised, channels last in memory, and mask (B, H, W) int64; smaller ones where `start_size` says so and
    the run's progress, also given, is small. Images are sampled bilinearly, masks at the nearest pixel; what
    comes from beyond the border is grey and ignored.

    Args:
        settings: what is done, and how strongly.
        image_size: (H, W) in pixels.
        seed: of all random numbers.
        rarity: weights (C,) with which `rare_crop` draws one of the classes of an image; None: all alike but
            the background.
    """

    def __init__(
        self,
        settings: AugmentConfig,
        image_size: tuple[int, int],
        seed: int,
        rarity: Sequence[float] | None = None,
    ):
        self.settings = settings
        self.image_size = tuple(image_size)
        self._generator = torch.Generator().manual_seed(seed)
        # Of its own, so that all else is the same with and without.
        self._crop_generator = torch.Generator().manual_seed((seed + CROP_SEED) % 2**32)
        self._rarity = torch.zeros(CLASSES)
        self._rarity[1:IGNORE_INDEX] = 1.0
        if rarity is not None:
            self._rarity = F.pad(torch.tensor(rarity, dtype=torch.float32), (0, CLASSES - len(rarity)))

    def __call__(self, image: Tensor, mask: Tensor, progress: float = 1.0) -> tuple[Tensor, Tensor]:
        size = training_size(self.image_size, self.settings.start_size, progress)
        numbers = torch.rand(len(image), len(DRAWS) + CLASSES, generator=self._generator)
        drawn = dict(zip(DRAWS, numbers[:, : len(DRAWS)].unbind(1), strict=True))
        settings = at_strength(self.settings, progress)
        image, mask = self._place(normalised(image), mask, settings, drawn, size)
        if any(getattr(settings, name) for name in COLOR):
            image = recolored(image, *color_matrix(settings, drawn))
        if settings.blur:
            image = blurred(image, drawn["blur"] < settings.blur, _between(drawn["sigma"], *BLUR_SIGMA))
        if settings.class_mix:
            image, mask = mixed(image, mask, drawn["mix"] < settings.class_mix, numbers[:, len(DRAWS) :])
        if settings.cutout:
            hole = _holes(size, drawn, settings.cutout, image.device)
            image = image.masked_fill(hole.unsqueeze(1), 0.0)
            mask = mask.masked_fill(hole, IGNORE_INDEX)
        return image.contiguous(memory_format=torch.channels_last), mask.long()

    def _place(
        self,
        image: Tensor,
        mask: Tensor,
        settings: AugmentConfig,
        drawn: dict[str, Tensor],
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Flip, scale, crop and rotate to the size wanted."""
        flips = drawn["flip"] < settings.flip
        if settings.scale != [1, 1] or settings.rotate:
            place = placement(settings, size, drawn, flips)
            shift = self._towards_rare(mask, place, settings.rare_crop, drawn, size)
            return sampled(image, mask, place, size, shift)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True)
            mask = F.interpolate(mask.unsqueeze(1), size, mode="nearest-exact").squeeze(1)
        if settings.flip:
            flips = flips.to(image.device, non_blocking=True).view(-1, 1, 1)
            image = torch.where(flips.unsqueeze(1), image.flip(-1), image)
            mask = torch.where(flips, mask.flip(-1), mask)
        return image, mask

    def _towards_rare(
        self, mask: Tensor, place: Tensor, chance: float, drawn: dict[str, Tensor], size: tuple[int, int]
    ) -> Tensor | None:
        """What to add to the places of the images (B, 2), for a pixel of a rare class to be seen."""
        if not self.settings.rare_crop:
            return None
        numbers = torch.rand(len(mask), 2 + CLASSES, generator=self._crop_generator)
        # Of the waiting times of Poisson processes the shortest: one of each rate, as `rarity` says.
        waiting = -numbers[:, 2:].log() / self._rarity
        chosen = numbers[:, 0] < chance
        pixel = random_pixels(mask, torch.where(chosen.unsqueeze(1), waiting, math.inf), numbers[:, 1])
        where = torch.stack((drawn["across"], drawn["down"]), 1)
        return shift_to(pixel, place, _between(where, -SEEN_WITHIN, SEEN_WITHIN), size)


def at_strength(settings: AugmentConfig, progress: float) -> AugmentConfig:
    """The settings that hold at some progress of the run: magnitudes and probabilities times the strength,
    which goes in a straight line from `start_strength` to `end_strength`; scales to the power of it."""
    strength = settings.start_strength + (settings.end_strength - settings.start_strength) * progress
    if strength == 1:
        return settings
    names = [field.name for field in fields(settings) if field.name not in NOT_SCALED]
    scaled = {name: strength * getattr(settings, name) for name in names}
    return replace(settings, scale=[side**strength for side in settings.scale], **scaled)


def training_size(image_size: tuple[int, int], start: float, progress: float) -> tuple[int, int]:
    """Height and width to train at: small images teach the first things in a fraction of the time.

    Three sizes, so that not every step has another: `start` of the full size, the mean of both, and from
    `FULL_SIZE_FROM` of the run on the full size.

    Args:
        image_size: the full size.
        start: share of it to begin with.
        progress: of the run, 0 to 1.
    """
    if progress >= FULL_SIZE_FROM or start == 1:
        return image_size
    share = start if progress < FULL_SIZE_FROM / 2 else (1 + start) / 2
    height, width = (min(side, math.ceil(share * side / MULTIPLE) * MULTIPLE) for side in image_size)
    return height, width


def placement(
    settings: AugmentConfig, image_size: tuple[int, int], drawn: dict[str, Tensor], flips: Tensor
) -> Tensor:
    """Where each pixel of the result comes from: (B, 2, 3), in coordinates from -1 to 1 as
    `torch.nn.functional.affine_grid` has them.

    Scales are distributed evenly over their logarithms. An enlarged image is cropped at a random place, a
    reduced one lies at a random place, whole unless it is rotated.
    """
    height, width = image_size
    low, high = settings.scale
    shrink = torch.exp(-_between(drawn["scale"], math.log(low), math.log(high)))
    angle = _between(drawn["rotate"], -1.0, 1.0) * math.radians(settings.rotate)
    mirror = torch.where(flips, -1.0, 1.0)
    room = (1 - shrink).abs()
    across, down = (room * _between(drawn[name], -1.0, 1.0) for name in ("across", "down"))
    cos, sin = angle.cos() * shrink, angle.sin() * shrink
    rows = [
        torch.stack((cos * mirror, -sin * height / width, across), 1),
        torch.stack((sin * width / height * mirror, cos, down), 1),
    ]
    return torch.stack(rows, 1)


def random_pixels(mask: Tensor, order: Tensor, which: Tensor) -> Tensor:
    """A pixel of a class of each image: x and y (B, 2) from -1 to 1, NaN where there is none.

    Args:
        mask: (B, h, w) uint8.
        order: (B, 256): of the classes that an image shows the one of the lowest is taken; infinite: never.
        which: (B,), 0 to 1: which of its pixels.
    """
    height, width = mask.shape[1:]
    order, which = (part.to(mask.device, non_blocking=True) for part in (order, which))
    labels = mask.flatten(1)
    there = torch.zeros_like(order, dtype=torch.bool).scatter_(1, labels.long(), True)
    lowest, taken = order.masked_fill(~there, math.inf).min(1)
    # Counted in integers: all devices find the same one.
    passed = (labels == taken.unsqueeze(1)).cumsum(1, dtype=torch.int32)
    wanted = (which * passed[:, -1]).int().clamp(max=passed[:, -1] - 1)
    number = (passed <= wanted.unsqueeze(1)).sum(1)
    pixel = torch.stack((2 * (number % width) + 1, 2 * (number // width) + 1), 1)
    pixel = pixel / torch.tensor((width, height), device=mask.device) - 1
    return torch.where(lowest.isfinite().unsqueeze(1), pixel, math.nan)


def shift_to(pixel: Tensor, place: Tensor, where: Tensor, image_size: tuple[int, int]) -> Tensor:
    """What to add to places (B, 2, 3) for a pixel of each image to be seen: (B, 2), 0 where nothing is.

    Enlarged images only: of others all can be seen anyway. A crop stays within the image, unless it is
    rotated and the pixel lies in a corner.

    Args:
        pixel: (B, 2), x and y from -1 to 1, NaN for none; the result is on its device.
        place: as `placement` gives it.
        where: (B, 2), the same for the place in the result at which the pixel shall be seen, if possible.
        image_size: of the result.
    """
    turn, start = place[:, :, :2], place[:, :, 2]
    back = torch.linalg.inv(turn)
    room = (1 - torch.linalg.det(turn).abs().sqrt()).unsqueeze(1)
    middle = 1 - 1 / torch.tensor(image_size[::-1])  # of the outermost pixels
    parts = turn, start, back, room, middle, where
    turn, start, back, room, middle, where = (part.to(pixel.device, non_blocking=True) for part in parts)

    def times(matrix: Tensor, vector: Tensor) -> Tensor:  # a GPU's own product may be rounded
        return (matrix * vector.unsqueeze(1)).sum(2)

    within = (pixel - times(turn, where)).minimum(room).maximum(-room)
    seen_at = times(back, pixel - within).minimum(middle).maximum(-middle)
    shift = pixel - times(turn, seen_at) - start
    return torch.where((room > 0) & shift.isfinite(), shift, 0.0)


def sampled(
    image: Tensor,
    mask: Tensor,
    place: Tensor,
    image_size: tuple[int, int],
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Image (B, 3, h, w) float32 and mask (B, h, w) uint8 at the places (B, 2, 3) that `placement` gives,
    moved by `shift` (B, 2), which is on the device of the images.

    Images that come out much smaller are halved first, with antialiasing, as validation images are reduced.
    """
    halvings = _halvings(place, image.shape[-2:], image_size)
    grid = _grid(place.to(image.device, non_blocking=True), image_size)
    if shift is not None:
        grid = grid + shift.view(-1, 1, 1, 2)
    # What lies beyond the border is 0: the mean colour, and in the mask, for that moment, the ignored pixels.
    shifted = mask.unsqueeze(1).float() - IGNORE_INDEX
    nearest = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    result = image.new_empty(len(image), 3, *image_size)
    for times in halvings.unique().tolist():
        numbers = (halvings == times).nonzero().flatten().to(image.device, non_blocking=True)
        part = image[numbers]
        if times:
            size = [max(1, round(side / 2**times)) for side in image.shape[-2:]]
            part = F.interpolate(part, size, mode="bilinear", antialias=True)
        part = F.grid_sample(part, grid[numbers], mode="bilinear", padding_mode="zeros", align_corners=False)
        result[numbers] = part
    return result, (nearest.squeeze(1) + IGNORE_INDEX).to(torch.uint8)


def _halvings(place: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """How often to halve each image (B,), so that a pixel of the result is made of about one of its own."""
    turn = place[:, :, :2]
    shrink = (turn[:, 0, 0] * turn[:, 1, 1] - turn[:, 0, 1] * turn[:, 1, 0]).abs().sqrt()
    reduction = shrink * math.sqrt(before[0] * before[1] / (after[0] * after[1]))
    return reduction.log2().round().clamp(min=0).int()


def _grid(place: Tensor, image_size: tuple[int, int]) -> Tensor:
    """As `torch.nn.functional.affine_grid`, whose matrix product a GPU may round to a tenth of a pixel."""
    down, across = ((2 * torch.arange(size, device=place.device) + 1) / size - 1 for size in image_size)
    per_across, per_down, start = place.unsqueeze(-1).unsqueeze(-1).unbind(2)  # (B, 2, 1, 1) each
    return (per_across * across + per_down * down.unsqueeze(1) + start).movedim(1, -1)


def color_matrix(settings: AugmentConfig, drawn: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Brightness, contrast, saturation, hue and greyscale in one: for RGB in 0..1 a matrix (B, 3, 3), and a
    share (B,) of the image's mean grey to add, which is what contrast turns around.

    Hues turn in YIQ, as in NVIDIA DALI's `color_twist`; all else is as torchvision defines it.
    """
    brightness, contrast, saturation = (
        1 + getattr(settings, name) * _between(drawn[name], -1.0, 1.0)
        for name in ("brightness", "contrast", "saturation")
    )
    saturation = torch.where(drawn["greyscale"] < settings.greyscale, 0.0, saturation).view(-1, 1, 1)
    grey = torch.tensor(GREY).expand(3, 3)
    saturate = saturation * torch.eye(3) + (1 - saturation) * grey
    to_yiq = torch.tensor(YIQ)
    turned = to_yiq.inverse() @ _turns(settings.hue * _between(drawn["hue"], -1.0, 1.0)) @ to_yiq
    return (contrast * brightness).view(-1, 1, 1) * (turned @ saturate), (1 - contrast) * brightness


def _turns(shares: Tensor) -> Tensor:
    """Rotations of I and Q by shares (B,) of a full turn: (B, 3, 3)."""
    angle = 2 * math.pi * shares
    turns = torch.eye(3).repeat(len(shares), 1, 1)
    turns[:, 1, 1] = turns[:, 2, 2] = angle.cos()
    turns[:, 1, 2], turns[:, 2, 1] = -angle.sin(), angle.sin()
    return turns


def recolored(image: Tensor, matrix: Tensor, grey_share: Tensor) -> Tensor:
    """Apply what `color_matrix` gives to a normalised image (B, 3, H, W); colours stay within 0..1."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    # The same matrix for normalised colours n, where RGB = std n + mean.
    matrix_n = matrix * std / std.unsqueeze(1)
    constant = (matrix @ mean - mean) / std
    grey_weights = torch.tensor(GREY) * std
    lows, highs = -mean / std, (1 - mean) / std
    move = [matrix_n, constant, grey_share.unsqueeze(1) / std, grey_weights, lows, highs]
    matrix_n, constant, grey_share, grey_weights, lows, highs = (
        part.to(image.device, non_blocking=True) for part in move
    )
    mean_grey = image.mean((2, 3)) @ grey_weights + sum(g * m for g, m in zip(GREY, MEAN, strict=True))
    constant = constant + grey_share * mean_grey.unsqueeze(1)
    pixels = torch.baddbmm(constant.unsqueeze(2), matrix_n, image.flatten(2)).view(image.shape)
    return pixels.clamp(lows.view(3, 1, 1), highs.view(3, 1, 1))


def mixed(image: Tensor, mask: Tensor, chosen: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Lay half of the classes of the image before it over each chosen one (ClassMix, arXiv 2007.07936).

    Background is nothing to lay over anything; of an odd number of classes the larger half is taken.

    Args:
        image, mask: (B, C, H, W) and (B, H, W) uint8.
        chosen: (B,) bool.
        ranks: (B, 256), random: the classes of lowest rank are taken.
    """
    ranks, chosen = (part.to(image.device, non_blocking=True) for part in (ranks, chosen))
    donor_image, donor_mask = image.roll(1, 0), mask.roll(1, 0)
    classes = donor_mask.flatten(1).long()
    there = torch.zeros_like(ranks).scatter_(1, classes, 1.0).bool()
    there[:, 0] = there[:, IGNORE_INDEX] = False
    place = torch.where(there, ranks, 2.0).argsort(1).argsort(1)  # those that are there come first
    taken = there & (place < (there.sum(1, keepdim=True) + 1) // 2) & chosen.unsqueeze(1)
    laid_over = taken.gather(1, classes).view_as(mask)
    image = torch.where(laid_over.unsqueeze(1), donor_image, image)
    return image, torch.where(laid_over, donor_mask, mask)


def blurred(image: Tensor, chosen: Tensor, sigma: Tensor) -> Tensor:
    """Blur the chosen ones (B,) of the images (B, 3, H, W) with Gaussians of sigma (B,) pixels."""
    numbers = chosen.nonzero().flatten()
    if not len(numbers):
        return image
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1.0)
    weights = torch.exp(-0.5 * (offsets / sigma[numbers].unsqueeze(1)) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).to(image.device, non_blocking=True)
    numbers = numbers.to(image.device, non_blocking=True)
    part = image[numbers]
    for dim in (2, 3):
        part = _weighted(part, weights, dim)
    return image.index_copy(0, numbers, part)


def _weighted(image: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Sum of the image (B, C, H, W) moved along a dimension, times weights (B, 2·BLUR_RADIUS+1); at the
    border its last row is repeated."""
    around = [0, 0, BLUR_RADIUS, BLUR_RADIUS] if dim == 2 else [BLUR_RADIUS, BLUR_RADIUS, 0, 0]
    padded = F.pad(image, around, mode="replicate")
    size = image.shape[dim]
    total = torch.zeros_like(image)
    for offset, weight in enumerate(weights.unbind(1)):
        total.addcmul_(padded.narrow(dim, offset, size), weight.view(-1, 1, 1, 1))
    return total


def _holes(
    image_size: tuple[int, int], drawn: dict[str, Tensor], chance: float, device: torch.device
) -> Tensor:
    """Pixels (B, H, W) bool of a rectangle in each image that has one."""
    inside = []
    for size, extent, start in zip(
        image_size, ("hole_height", "hole_width"), ("hole_top", "hole_left"), strict=True
    ):
        length = (_between(drawn[extent], *HOLE) * size).unsqueeze(1)
        first = drawn[start].unsqueeze(1) * (size - length)
        pixels = torch.arange(size) + 0.5
        inside.append((pixels >= first) & (pixels < first + length))
    rows = inside[0] & (drawn["hole"] < chance).unsqueeze(1)
    rows, columns = rows.to(device, non_blocking=True), inside[1].to(device, non_blocking=True)
    return rows.unsqueeze(2) & columns.unsqueeze(1)


def _between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Numbers from 0 to 1, moved to low..high."""
    return low + (high - low) * numbers
