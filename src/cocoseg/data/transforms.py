"""Transforms of batches of images and masks; augment.py draws their parameters.

All geometric changes together are one sampling per image, all color changes one 3x3 matrix, so a batch costs
few passes over its memory. Parameters (B,) are tensors on the CPU, one number for each image.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cocoseg.labels import IGNORE_INDEX
from cocoseg.networks.spec import MEAN, STD

LUMA = (0.299, 0.587, 0.114)  # gray of RGB by ITU-R BT.601, as in Pillow and torchvision
# RGB -> YIQ (FCC NTSC). A change of hue is a rotation around the gray axis Y, so it is a matrix.
YIQ = (LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
BLUR_RADIUS = 3  # pixels
CLASSES = 256  # values of a uint8 mask


def crop_matrix(
    *, extent: Tensor, across: Tensor, down: Tensor, angle: Tensor, flip: Tensor, size: tuple[int, int]
) -> Tensor:
    """Affine matrices (B, 2, 3) from result to source, for `torch.nn.functional.affine_grid`.

    An extent below 1 crops and so enlarges. One above 1 shows the whole image with a border; a rotation may
    still move corners out of sight.

    Args:
        extent: (B,) sides of the crop, as shares of the image's sides.
        across, down: (B,) position of the crop, -1 (left, top) to 1 (right, bottom).
        angle: (B,) rotation in radians.
        flip: (B,) bool, left to right.
        size: (height, width) of the result, for rotations without distortion.
    """
    height, width = size
    mirror = torch.where(flip, -1.0, 1.0)
    room = (1 - extent).abs()
    across, down = room * across, room * down
    cos, sin = angle.cos() * extent, angle.sin() * extent
    rows = [
        torch.stack((cos * mirror, -sin * height / width, across), 1),
        torch.stack((sin * width / height * mirror, cos, down), 1),
    ]
    return torch.stack(rows, 1)


def warp(image: Tensor, mask: Tensor, theta: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Sample images bilinearly and masks at the nearest pixel.

    Images that become much smaller are halved first, with antialiasing as in validation.

    Args:
        image: (B, 3, h, w) float32, normalized.
        mask: (B, h, w) uint8.
        theta: matrices (B, 2, 3) as `crop_matrix` returns them.
        size: (H, W) of the result.

    Returns:
        Image (B, 3, H, W) float32 and mask (B, H, W) uint8. Beyond the border the image is 0, the mean color,
        and the mask the ignore index.
    """
    halvings = count_halvings(theta, image.shape[-2:], size)
    grid = affine_grid(theta.to(image.device, non_blocking=True), size)
    # grid_sample fills with 0, so the ignore index is 0 during the sampling.
    shifted = mask.unsqueeze(1).float() - IGNORE_INDEX
    nearest = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    result = image.new_empty(len(image), 3, *size)
    for times in halvings.unique().tolist():
        indices = (halvings == times).nonzero().flatten().to(image.device, non_blocking=True)
        part = image[indices]
        if times:
            smaller = [max(1, round(side / 2**times)) for side in image.shape[-2:]]
            part = F.interpolate(part, smaller, mode="bilinear", antialias=True)
        part = F.grid_sample(part, grid[indices], mode="bilinear", padding_mode="zeros", align_corners=False)
        result[indices] = part
    return result, (nearest.squeeze(1) + IGNORE_INDEX).to(torch.uint8)


def count_halvings(theta: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Number of halvings (B,) int32 that bring each image closest to the resolution of the result."""
    turn = theta[:, :, :2]
    extent = (turn[:, 0, 0] * turn[:, 1, 1] - turn[:, 0, 1] * turn[:, 1, 0]).abs().sqrt()
    reduction = extent * math.sqrt(before[0] * before[1] / (after[0] * after[1]))
    return reduction.log2().round().clamp(min=0).int()


def affine_grid(theta: Tensor, size: tuple[int, int]) -> Tensor:
    """Grid (B, H, W, 2) as `torch.nn.functional.affine_grid` returns it, in exact float32.

    torch computes it as a matrix product, which a GPU may round by a tenth of a pixel.
    """
    down, across = ((2 * torch.arange(side, device=theta.device) + 1) / side - 1 for side in size)
    per_across, per_down, start = theta.unsqueeze(-1).unsqueeze(-1).unbind(2)  # (B, 2, 1, 1) each
    return (per_across * across + per_down * down.unsqueeze(1) + start).movedim(1, -1)


def color_matrix(
    brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> tuple[Tensor, Tensor]:
    """Combine changes of color into one, for RGB from 0 to 1.

    Hues are rotated in YIQ, as in NVIDIA DALI's `color_twist`. The other changes are those of torchvision.

    Args:
        brightness, contrast, saturation: (B,) factors; a saturation of 0 makes images gray.
        hue: (B,) shares of a full turn.

    Returns:
        Matrices (B, 3, 3), and factors (B,) of the image's mean gray, which is added because contrast changes
        around it.
    """
    saturation = saturation.view(-1, 1, 1)
    gray = torch.tensor(LUMA).expand(3, 3)
    saturate = saturation * torch.eye(3) + (1 - saturation) * gray
    to_yiq = torch.tensor(YIQ)
    turned = to_yiq.inverse() @ _hue_rotation(hue) @ to_yiq
    return (contrast * brightness).view(-1, 1, 1) * (turned @ saturate), (1 - contrast) * brightness


def _hue_rotation(hue: Tensor) -> Tensor:
    """Rotations (B, 3, 3) of I and Q by shares (B,) of a full turn."""
    angle = 2 * math.pi * hue
    turns = torch.eye(3).repeat(len(hue), 1, 1)
    turns[:, 1, 1] = turns[:, 2, 2] = angle.cos()
    turns[:, 1, 2], turns[:, 2, 1] = -angle.sin(), angle.sin()
    return turns


def apply_color(image: Tensor, matrix: Tensor, gray_share: Tensor) -> Tensor:
    """Apply a `color_matrix` to a normalized image (B, 3, H, W). RGB is clipped to 0..1."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    # The same matrix for normalized colors n, where RGB = std n + mean.
    matrix_n = matrix * std / std.unsqueeze(1)
    constant = (matrix @ mean - mean) / std
    gray_weights = torch.tensor(LUMA) * std
    lows, highs = -mean / std, (1 - mean) / std
    move = [matrix_n, constant, gray_share.unsqueeze(1) / std, gray_weights, lows, highs]
    matrix_n, constant, gray_share, gray_weights, lows, highs = (
        part.to(image.device, non_blocking=True) for part in move
    )
    mean_gray = image.mean((2, 3)) @ gray_weights + sum(g * m for g, m in zip(LUMA, MEAN, strict=True))
    constant = constant + gray_share * mean_gray.unsqueeze(1)
    pixels = torch.baddbmm(constant.unsqueeze(2), matrix_n, image.flatten(2)).view(image.shape)
    return pixels.clamp(lows.view(3, 1, 1), highs.view(3, 1, 1))


def class_mix(image: Tensor, mask: Tensor, chosen: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Paste half of the classes of the previous image onto each chosen one (ClassMix, arXiv 2007.07936).

    Background and ignored pixels are never pasted. Half of an odd number of classes is rounded up.

    Args:
        image, mask: (B, 3, H, W) of any dtype, (B, H, W) uint8.
        chosen: (B,) bool.
        ranks: (B, 256) random numbers; the classes of lowest rank are pasted.
    """
    ranks, chosen = (part.to(image.device, non_blocking=True) for part in (ranks, chosen))
    donor_image, donor_mask = image.roll(1, 0), mask.roll(1, 0)
    classes = donor_mask.flatten(1).long()
    occurs = torch.zeros_like(ranks).scatter_(1, classes, 1.0).bool()
    occurs[:, 0] = occurs[:, IGNORE_INDEX] = False
    order = torch.where(occurs, ranks, 2.0).argsort(1).argsort(1)  # classes that occur come first
    taken = occurs & (order < (occurs.sum(1, keepdim=True) + 1) // 2) & chosen.unsqueeze(1)
    pasted = taken.gather(1, classes).view_as(mask)
    image = torch.where(pasted.unsqueeze(1), donor_image, image)
    return image, torch.where(pasted, donor_mask, mask)


def gaussian_blur(image: Tensor, chosen: Tensor, sigma: Tensor) -> Tensor:
    """Blur the chosen (B,) of the images (B, 3, H, W) with Gaussians of sigma (B,) pixels."""
    indices = chosen.nonzero().flatten()
    if not len(indices):
        return image
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1.0)
    weights = torch.exp(-0.5 * (offsets / sigma[indices].unsqueeze(1)) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).to(image.device, non_blocking=True)
    indices = indices.to(image.device, non_blocking=True)
    part = image[indices]
    for dim in (2, 3):
        part = _convolve(part, weights, dim)
    return image.index_copy(0, indices, part)


def _convolve(image: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Convolve image (B, C, H, W) along a dimension with weights (B, 2·BLUR_RADIUS+1); borders repeat."""
    around = [0, 0, BLUR_RADIUS, BLUR_RADIUS] if dim == 2 else [BLUR_RADIUS, BLUR_RADIUS, 0, 0]
    padded = F.pad(image, around, mode="replicate")
    size = image.shape[dim]
    total = torch.zeros_like(image)
    for offset, weight in enumerate(weights.unbind(1)):
        total.addcmul_(padded.narrow(dim, offset, size), weight.view(-1, 1, 1, 1))
    return total


def interval(share: Tensor, start: Tensor, size: int) -> Tensor:
    """Intervals on a line, (B, size) bool: `share` (B,) is their length, `start` (B,) their place, 0 to 1."""
    length = (share * size).unsqueeze(1)
    first = start.unsqueeze(1) * (size - length)
    centers = torch.arange(size) + 0.5
    return (centers >= first) & (centers < first + length)
