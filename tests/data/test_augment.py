"""Random changes of batches, the same for images and masks."""

import math

import msgspec
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from cocoseg.config import AugmentConfig
from cocoseg.data.augment import BLUR_SIGMA, Augment, training_size
from cocoseg.data.transforms import (
    affine_grid,
    apply_color,
    class_mix,
    color_matrix,
    count_halvings,
    crop_matrix,
    gaussian_blur,
    warp,
)
from cocoseg.networks.pixels import denormalize, normalize
from cocoseg.networks.spec import MEAN, STD

SIZE = (40, 56)
CLASSES = 6
# A color per class, all of them far apart.
COLORS = torch.tensor([[250, 5, 5], [5, 250, 5], [5, 5, 250], [250, 250, 5], [5, 250, 250], [250, 5, 250]])

STRONG = {
    "flip": {"flip": 0.5},
    "scale": {"scale": [0.5, 2.0]},
    "enlarged": {"scale": [2.0, 2.0]},
    "reduced": {"scale": [0.5, 0.5]},
    "rotate": {"rotate": 30.0},
    "color": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "greyscale": 0.2},
    "blur": {"blur": 0.7},
    "cutout": {"cutout": 0.7},
    "class_mix": {"class_mix": 0.7},
}
STRONG["all"] = {key: value for part in list(STRONG.values()) for key, value in part.items()}
STRONG["all"]["scale"] = [0.5, 2.0]


def blobs(count: int = 8, size: tuple[int, int] = SIZE, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose colors encode their labels: (B, 3, H, W) and (B, H, W) uint8; some pixels are ignored."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, CLASSES, (count, 4, 5), generator=generator)
    rows = torch.arange(size[0]) * 4 // size[0]
    columns = torch.arange(size[1]) * 5 // size[1]
    mask = coarse[:, rows][:, :, columns]
    image = COLORS[mask].permute(0, 3, 1, 2).to(torch.uint8)
    mask[:, :3, :3] = 255
    return image, mask.to(torch.uint8)


def augment(size: tuple[int, int] = SIZE, seed: int = 0, **settings: object) -> Augment:
    return Augment(AugmentConfig(**settings), size, seed)


def classes_of(image: torch.Tensor) -> torch.Tensor:
    """Class of each pixel by its color, (B, H, W); -1 where it is not exactly the color of a class."""
    colors = torch.from_numpy(denormalize(image)).long()
    same = (colors.unsqueeze(3) == COLORS).all(-1)
    return torch.where(same.any(-1), same.to(torch.uint8).argmax(-1), -1)


# --- alignment


@pytest.mark.parametrize("name", [name for name in STRONG if name not in ("blur", "color", "all")])
def test_image_and_mask_stay_aligned(name):
    """A pixel that has exactly the color of a class has its label, or is ignored."""
    transform = augment(**STRONG[name])
    compared = 0
    for seed in range(5):
        image, mask = transform(*blobs(seed=seed))
        classes = classes_of(image)
        known = (classes >= 0) & (mask != 255)
        assert torch.equal(classes[known], mask[known])
        compared += known.float().mean().item()
    assert compared / 5 > (0.08 if name == "reduced" else 0.4)


@pytest.mark.parametrize("name", ["blur", "color"])
def test_color_changes_leave_masks_unchanged(name):
    image, mask = blobs()
    changed, same = augment(**STRONG[name])(image, mask)
    assert torch.equal(same, mask.long())
    assert not torch.allclose(changed, normalize(image), atol=0.1)


@pytest.mark.parametrize("name", STRONG)
def test_no_new_label_appears(name):
    for seed in range(5):
        image, mask = blobs(seed=seed)
        mask[mask == 3] = 2  # class 3 is missing everywhere
        _, changed = augment(seed=seed, **STRONG[name])(image, mask)
        assert set(changed.unique().tolist()) <= {*mask.unique().tolist(), 255}


@pytest.mark.parametrize("name", [name for name in STRONG if name not in ("class_mix", "all")])
def test_nothing_comes_from_another_image(name):
    image, mask = blobs(count=3)
    for number in range(3):
        mask[number][mask[number] != 255] = number
    _, changed = augment(**STRONG[name])(image, mask)
    for number in range(3):
        assert set(changed[number].unique().tolist()) <= {number, 255}


@pytest.mark.parametrize("name", STRONG)
def test_shapes_dtypes_and_range(name):
    image, mask = augment(**STRONG[name])(*blobs(size=(60, 84)))
    assert (image.shape, image.dtype) == ((8, 3, *SIZE), torch.float32)
    assert (mask.shape, mask.dtype) == ((8, *SIZE), torch.int64)
    assert image.is_contiguous(memory_format=torch.channels_last)
    black, white = normalize(torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2))[:, 0].unbind(-1)
    assert (image.amin((0, 2, 3)) >= black - 1e-4).all()
    assert (image.amax((0, 2, 3)) <= white + 1e-4).all()


# --- random numbers


@pytest.mark.parametrize("name", STRONG)
def test_equal_seeds_give_equal_results(name):
    if name in ("enlarged", "reduced"):
        pytest.skip("crops differ by their place, which the others show")
    first, again, other = (augment(seed=seed, **STRONG[name])(*blobs()) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_the_next_batch_is_changed_differently():
    transform = augment(**STRONG["all"])
    first, second = transform(*blobs()), transform(*blobs())
    assert not torch.equal(first[0], second[0])


def test_global_random_numbers_are_not_used():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    augment(**STRONG["all"])(*blobs())
    assert torch.equal(torch.get_rng_state(), before)


def test_switching_one_transform_off_does_not_change_the_others():
    with_both = augment(scale=[0.5, 2.0], cutout=0.5, class_mix=0.5)
    without = augment(scale=[0.5, 2.0])
    for seed in range(3):  # the second and third batch, too
        _, first = with_both(*blobs(seed=seed))
        _, second = without(*blobs(seed=seed))
        same = (first == second).flatten(1).all(1)
        assert same.any()  # some images have neither a hole nor pasted classes


def test_every_image_gets_its_own_random_numbers():
    image, mask = (part[:1].repeat(16, *[1] * (part.ndim - 1)) for part in blobs())
    changed, _ = augment(scale=[0.5, 2.0])(image, mask)
    assert len({tuple(one.flatten()[::97].tolist()) for one in changed}) == 16


def test_nothing_is_done_by_default():
    image, mask = blobs()
    same_image, same_mask = augment()(image, mask)
    assert torch.equal(same_image, normalize(image))
    assert torch.equal(same_mask, mask.long())


def test_inputs_are_not_changed():
    image, mask = blobs()
    before = image.clone(), mask.clone()
    augment(**STRONG["all"])(image, mask)
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


def test_one_image_alone():
    image, mask = augment(**STRONG["all"])(*blobs(count=1))
    assert image.shape[0] == mask.shape[0] == 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", STRONG)
def test_a_gpu_does_the_same(name):
    ours = augment(**STRONG[name])(*blobs())
    theirs = augment(**STRONG[name])(*(part.cuda() for part in blobs()))
    torch.testing.assert_close(theirs[0].cpu(), ours[0], atol=1e-3, rtol=0)
    assert (theirs[1].cpu() != ours[1]).float().mean() < 1e-3  # pixels midway between two may differ


# --- each transform


def test_the_grid_equals_that_of_torch():
    theta = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(theta, [3, 1, *SIZE], align_corners=False)
    torch.testing.assert_close(affine_grid(theta, SIZE), expected)


def test_the_share_of_flips_is_that_of_the_setting():
    image, mask = blobs(count=400, size=(8, 10))
    changed, flipped = augment(size=(8, 10), flip=0.3)(image, mask)
    mirrored = [torch.equal(a, b.flip(-1).long()) for a, b in zip(flipped, mask, strict=True)]
    straight = [torch.equal(a, b.long()) for a, b in zip(flipped, mask, strict=True)]
    assert all(a or b for a, b in zip(mirrored, straight, strict=True))
    assert 0.2 < np.mean(mirrored) < 0.4
    for one, original, mirror in zip(changed, normalize(image), mirrored, strict=True):
        assert torch.equal(one, original.flip(-1) if mirror else original)


def crop(
    count: int = 2,
    *,
    scale: float = 1.0,
    across: float = 0.0,
    down: float = 0.0,
    degrees: float = 0.0,
    flip: bool = False,
    size: tuple[int, int] = SIZE,
) -> torch.Tensor:
    """The same crop for several images: (count, 2, 3)."""
    values = {"extent": 1 / scale, "across": across, "down": down, "angle": math.radians(degrees)}
    numbers = {name: torch.full((count,), value) for name, value in values.items()}
    return crop_matrix(**numbers, flip=torch.full((count,), flip), size=size)


@pytest.mark.parametrize("flip", [False, True])
def test_scale_one_copies_or_mirrors_the_image(flip):
    image, mask = blobs(count=2)
    seen_image, seen_mask = warp(normalize(image), mask, crop(flip=flip), SIZE)
    expected = (normalize(image).flip(-1), mask.flip(-1)) if flip else (normalize(image), mask)
    torch.testing.assert_close(seen_image, expected[0], atol=1e-4, rtol=0)
    assert torch.equal(seen_mask, expected[1])


@pytest.mark.parametrize(("across", "down"), [(-1, -1), (1, -1), (-1, 1), (1, 1), (0, 0)])
def test_an_extent_of_a_half_enlarges_up_to_the_border(across, down):
    """At double size a quarter of the image is seen, left or top for -1, right or bottom for 1."""
    image, mask = blobs(count=2)
    _, seen = warp(normalize(image), mask, crop(scale=2.0, across=across, down=down), SIZE)
    top, left = (1 + down) * SIZE[0] // 4, (1 + across) * SIZE[1] // 4
    part = mask[:, top : top + SIZE[0] // 2, left : left + SIZE[1] // 2]
    assert torch.equal(seen, part.repeat_interleave(2, 1).repeat_interleave(2, 2))


@pytest.mark.parametrize(("across", "down"), [(-1, -1), (1, 1), (0, 0)])
def test_an_extent_above_one_shows_the_whole_image_within_ignored_pixels(across, down):
    image, mask = blobs(count=2)
    mask[mask == 255] = 0
    _, seen = warp(normalize(image), mask, crop(scale=0.5, across=across, down=down), SIZE)
    assert (seen != 255).float().mean() == pytest.approx(0.25)
    rows = (seen[0] != 255).any(1).nonzero().flatten()
    # The image is at the top where the crop has been moved to the bottom.
    assert rows[0] == (1 - down) * SIZE[0] // 4
    assert set(seen.unique().tolist()) == {*mask.unique().tolist(), 255}


def test_rotations_have_the_angle_and_no_distortion():
    """A square turned by 90 degrees stays a square, and angles stay angles in an oblong image."""
    square = torch.zeros(1, 80, 80, dtype=torch.uint8)
    square[:, 10:30, 50:70] = 1
    _, turned = warp(square.unsqueeze(1).float(), square, crop(1, degrees=90.0, size=(80, 80)), (80, 80))
    assert torch.equal(turned, square.rot90(1, (1, 2)))

    (wide,) = crop(1, degrees=45.0, size=(40, 80))
    to_pixels = torch.diag(torch.tensor([40.0, 20.0]))
    in_pixels = to_pixels @ wide[:, :2] @ to_pixels.inverse()
    turn = math.radians(45)
    expected = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    torch.testing.assert_close(in_pixels, torch.tensor(expected))


def test_flip_and_rotation_mirror_the_rotated_image():
    image, mask = blobs(count=2)
    rotated, expected = warp(normalize(image), mask, crop(degrees=20.0), SIZE)
    seen, seen_mask = warp(normalize(image), mask, crop(degrees=20.0, flip=True), SIZE)
    torch.testing.assert_close(seen, rotated.flip(-1), atol=1e-3, rtol=0)
    assert (seen_mask == expected.flip(-1)).float().mean() > 0.99


def test_logarithms_of_scales_are_uniform_in_their_range():
    size = (32, 32)
    image = torch.zeros(500, 3, *size, dtype=torch.uint8)
    _, mask = augment(size=size, scale=[0.5, 1.0])(image, torch.ones(500, *size, dtype=torch.uint8))
    scale = (mask == 1).flatten(1).float().mean(1).sqrt()
    assert scale.min() >= 0.5 - 1 / 32
    assert scale.max() <= 1
    assert scale.log().mean().item() == pytest.approx(math.log(0.5) / 2, abs=0.05)


# --- size


def test_images_that_are_larger_are_reduced_smoothly():
    image, mask = blobs(size=(80, 112))
    small_image, small_mask = augment()(image, mask)
    expected = torch.nn.functional.interpolate(normalize(image), SIZE, mode="bilinear", antialias=True)
    torch.testing.assert_close(small_image, expected)
    assert torch.equal(small_mask, mask[:, 1::2, 1::2].long())


@pytest.mark.parametrize(("scale", "expected"), [(0.25, 2), (0.5, 1), (0.6, 1), (0.8, 0), (2.0, 0)])
def test_images_that_come_out_smaller_are_reduced_smoothly(scale, expected):
    """Noise has about the contrast that it has after antialiasing."""
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    theta = crop(scale=scale, size=(64, 64))
    assert count_halvings(theta, (64, 64), (64, 64)).tolist() == [expected] * 2
    assert count_halvings(theta, (128, 128), (64, 64)).tolist() == [expected + 1 if scale <= 1 else 0] * 2
    seen, mask = warp(noise, torch.zeros(2, 64, 64, dtype=torch.uint8), theta, (64, 64))
    inside = seen.movedim(1, -1)[mask == 0]
    smooth = torch.nn.functional.interpolate(noise, scale_factor=scale, mode="bilinear", antialias=True)
    if expected:
        assert inside.std() < 1.15 * smooth.std()


@pytest.mark.parametrize(
    ("progress", "size"),
    [
        (0.0, (96, 128)),
        (0.29, (96, 128)),
        (0.3, (144, 192)),
        (0.59, (144, 192)),
        (0.6, (180, 240)),
        (1.0, (180, 240)),
    ],
)
def test_training_begins_with_small_images(progress, size):
    assert training_size((180, 240), 0.5, progress) == size
    assert training_size((180, 240), 1.0, progress) == (180, 240)


@pytest.mark.parametrize("name", ["flip", "scale", "cutout", "class_mix"])
def test_small_images_stay_aligned(name):
    image, mask = augment(size=(64, 96), start_size=0.5, **STRONG[name])(*blobs(size=(64, 96)), progress=0.0)
    assert (image.shape[-2:], mask.shape[-2:]) == ((32, 48), (32, 48))
    classes = classes_of(image)
    known = (classes >= 0) & (mask != 255)
    assert torch.equal(classes[known], mask[known])
    assert known.float().mean() > 0.1


def rgb(seed: int = 0) -> torch.Tensor:
    """Noise (2, 3, H, W) from 0.2 to 0.7, so that no change is clipped."""
    return 0.2 + 0.5 * torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(seed))


def recolor(
    image: torch.Tensor,
    *,
    brightness: float = 1.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    hue: float = 0.0,
) -> torch.Tensor:
    """Change the colors of RGB values from 0 to 1."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    numbers = [torch.full((len(image),), value) for value in (brightness, contrast, saturation, hue)]
    return apply_color((image - mean) / std, *color_matrix(*numbers)) * std + mean


@pytest.mark.parametrize("factor", [0.7, 0.88, 1.24])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_color_changes_equal_those_of_torchvision(name, factor):
    image = rgb()
    expected = getattr(tv, f"adjust_{name}")(image, factor)
    torch.testing.assert_close(recolor(image, **{name: factor}), expected, atol=1e-3, rtol=0)


def test_brightness_contrast_and_saturation_are_applied_in_this_order():
    image = rgb()
    expected = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(image, 1.1), 0.85), 1.2)
    changed = recolor(image, brightness=1.1, contrast=0.85, saturation=1.2)
    torch.testing.assert_close(changed, expected, atol=1e-3, rtol=0)


def test_grayscale_equals_that_of_torchvision():
    image, mask = blobs()
    changed, _ = augment(greyscale=1.0)(image, mask)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = tv.rgb_to_grayscale(image.float() / 255, 3)
    torch.testing.assert_close(changed * std + mean, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        recolor(rgb(), saturation=0.0), tv.rgb_to_grayscale(rgb(), 3), atol=1e-3, rtol=0
    )


def test_the_range_of_color_changes_is_that_of_the_settings():
    """Factors are uniform within 1 ± the setting."""
    image = torch.full((1000, 3, 1, 1), 100, dtype=torch.uint8)
    changed, _ = augment(size=(1, 1), brightness=0.3)(image, torch.zeros(1000, 1, 1, dtype=torch.uint8))
    factor = denormalize(changed)[:, 0, 0, 0] / 100
    assert factor.min() == pytest.approx(0.7, abs=0.01)
    assert factor.max() == pytest.approx(1.3, abs=0.01)
    assert factor.mean() == pytest.approx(1.0, abs=0.02)


def test_hue_changes_are_rotations_around_gray():
    gray = torch.full((1, 3, 4, 4), 0.4)
    torch.testing.assert_close(recolor(gray, hue=0.3), gray, atol=1e-5, rtol=0)
    image = rgb()
    once = recolor(image, hue=0.04)  # a share of a full turn
    assert not torch.allclose(once, image, atol=0.005)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close((once * luma).sum(1), (image * luma).sum(1), atol=1e-3, rtol=0)
    torch.testing.assert_close(recolor(once, hue=-0.04), image, atol=2e-3, rtol=0)


def test_blur_equals_that_of_torchvision():
    image = torch.rand(4, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor([True, False, True, False])
    sigma = torch.tensor([0.6, 0.6, BLUR_SIGMA[1], 1.0])
    changed = gaussian_blur(image, chosen, sigma)
    assert torch.equal(changed[1], image[1])
    assert torch.equal(changed[3], image[3])
    for number in (0, 2):
        expected = tv.gaussian_blur(image[number], [7, 7], [sigma[number].item()] * 2)
        inside = (slice(None), slice(3, -3), slice(3, -3))  # torchvision mirrors the border, ours repeats it
        torch.testing.assert_close(changed[number][inside], expected[inside], atol=1e-4, rtol=0)


def test_holes_are_gray_ignored_and_of_moderate_size():
    image, mask = blobs(count=200)
    mask[mask == 255] = 0
    changed, cut = augment(cutout=0.5)(image, mask)
    hole = cut == 255
    share = hole.flatten(1).float().mean(1)
    assert 0.4 < (share > 0).float().mean() < 0.6
    assert share.max() <= 0.45**2
    assert share[share > 0].min() > 0.005
    assert (changed.permute(0, 2, 3, 1)[hole] == 0).all()
    kept = ~hole.unsqueeze(1).expand_as(changed)
    assert torch.equal(changed[kept], normalize(image)[kept])


def test_half_of_the_classes_of_the_previous_image_is_pasted():
    mask = torch.zeros(2, 4, 8, dtype=torch.uint8)
    mask[0, :, 0:2], mask[0, :, 2:4], mask[0, :, 4:6], mask[0, 0, 7] = 1, 2, 3, 255
    mask[1] = 9
    image = torch.stack([torch.full((3, 4, 8), 1.0), torch.full((3, 4, 8), 2.0)])
    ranks = torch.full((2, 256), 0.5)
    ranks[1, 3], ranks[1, 1] = 0.1, 0.2  # two of the three classes of image 0
    ranks[1, 0] = ranks[1, 255] = 0.0  # background and ignored pixels are never pasted
    changed, labels = class_mix(image, mask, torch.tensor([False, True]), ranks)
    assert torch.equal(labels[0], mask[0])
    expected = torch.full((4, 8), 9, dtype=torch.uint8)
    expected[:, 0:2], expected[:, 4:6] = 1, 3
    assert torch.equal(labels[1], expected)
    assert torch.equal(changed[1, 0] == 1.0, expected != 9)


def test_every_setting_is_used():
    """Each setting alone changes something; `extra` does so in the loaders."""
    for field in msgspec.structs.fields(AugmentConfig):
        if field.name == "extra":
            continue
        value = [0.5, 0.7] if field.name == "scale" else 20.0 if field.name == "rotate" else 0.5
        image, mask = blobs()
        changed, labels = augment(**{field.name: value})(image, mask, progress=0.0)
        if field.name == "start_size":
            assert changed.shape != image.shape
            continue
        same = torch.allclose(changed, normalize(image), atol=1e-3) and torch.equal(labels, mask.long())
        assert not same, field.name
