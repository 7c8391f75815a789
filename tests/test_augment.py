"""Batches are changed at random, images and masks alike."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from cocoseg.augment import (
    BLUR_SIGMA,
    DRAWS,
    Augment,
    _grid,
    _halvings,
    at_strength,
    blurred,
    color_matrix,
    mixed,
    placement,
    random_pixels,
    recolored,
    sampled,
    shift_to,
    training_size,
)
from cocoseg.config import AugmentConfig
from cocoseg.pixels import denormalised, normalised
from cocoseg.spec import MEAN, STD

SIZE = (40, 56)
CLASSES = 6
# A colour per class, far from each other; those of classes that don't occur are not used.
COLORS = torch.tensor([[250, 5, 5], [5, 250, 5], [5, 5, 250], [250, 250, 5], [5, 250, 250], [250, 5, 250]])

STRONG = {
    "flip": {"flip": 0.5},
    "scale": {"scale": [0.5, 2.0]},
    "enlarged": {"scale": [2.0, 2.0]},
    "rare_crop": {"scale": [0.8, 3.0], "rare_crop": 0.7},
    "reduced": {"scale": [0.5, 0.5]},
    "rotate": {"rotate": 30.0},
    "colour": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "greyscale": 0.2},
    "blur": {"blur": 0.7},
    "cutout": {"cutout": 0.7},
    "class_mix": {"class_mix": 0.7},
}
STRONG["all"] = {key: value for part in list(STRONG.values()) for key, value in part.items()}
STRONG["all"]["scale"] = [0.5, 2.0]


def blobs(count: int = 8, size: tuple[int, int] = SIZE, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose colours encode their labels: (B, 3, H, W) and (B, H, W) uint8; some pixels are ignored."""
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
    """The class whose colour each pixel has, -1 where it has none exactly: (B, H, W)."""
    colors = torch.from_numpy(denormalised(image)).long()
    same = (colors.unsqueeze(3) == COLORS).all(-1)
    return torch.where(same.any(-1), same.to(torch.uint8).argmax(-1), -1)


# --- alignment


@pytest.mark.parametrize("name", [name for name in STRONG if name not in ("blur", "colour", "all")])
def test_image_and_mask_stay_aligned(name):
    """Wherever a pixel has the very colour of a class, its label is that class, or ignored."""
    transform = augment(**STRONG[name])
    compared = 0
    for seed in range(5):
        image, mask = transform(*blobs(seed=seed))
        classes = classes_of(image)
        known = (classes >= 0) & (mask != 255)
        assert torch.equal(classes[known], mask[known])
        compared += known.float().mean().item()
    assert compared / 5 > (0.08 if name == "reduced" else 0.4)


@pytest.mark.parametrize("name", ["blur", "colour"])
def test_what_changes_colours_only_leaves_masks_alone(name):
    image, mask = blobs()
    changed, same = augment(**STRONG[name])(image, mask)
    assert torch.equal(same, mask.long())
    assert not torch.allclose(changed, normalised(image), atol=0.1)


@pytest.mark.parametrize("name", STRONG)
def test_no_label_appears_that_was_not_there(name):
    for seed in range(5):
        image, mask = blobs(seed=seed)
        mask[mask == 3] = 2  # so that one is missing everywhere
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
    black, white = normalised(torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2))[:, 0].unbind(-1)
    assert (image.amin((0, 2, 3)) >= black - 1e-4).all()
    assert (image.amax((0, 2, 3)) <= white + 1e-4).all()


# --- random numbers


@pytest.mark.parametrize("name", STRONG)
def test_the_seed_decides(name):
    if name in ("enlarged", "reduced"):
        pytest.skip("crops differ by their place, which the others show")
    first, again, other = (augment(seed=seed, **STRONG[name])(*blobs()) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_a_batch_after_another_is_changed_otherwise():
    transform = augment(**STRONG["all"])
    first, second = transform(*blobs()), transform(*blobs())
    assert not torch.equal(first[0], second[0])


def test_random_numbers_of_the_program_are_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    augment(**STRONG["all"])(*blobs())
    assert torch.equal(torch.get_rng_state(), before)


def test_switching_one_transform_off_leaves_the_others_as_they_were():
    with_both = augment(scale=[0.5, 2.0], cutout=0.5, class_mix=0.5)
    without = augment(scale=[0.5, 2.0])
    for seed in range(3):  # the second and third batch, too
        _, first = with_both(*blobs(seed=seed))
        _, second = without(*blobs(seed=seed))
        same = (first == second).flatten(1).all(1)
        assert same.any()  # images that were neither cut nor mixed


def test_every_image_gets_numbers_of_its_own():
    image, mask = (part[:1].repeat(16, *[1] * (part.ndim - 1)) for part in blobs())
    changed, _ = augment(scale=[0.5, 2.0])(image, mask)
    assert len({tuple(one.flatten()[::97].tolist()) for one in changed}) == 16


def test_nothing_is_done_by_default():
    image, mask = blobs()
    same_image, same_mask = augment()(image, mask)
    assert torch.equal(same_image, normalised(image))
    assert torch.equal(same_mask, mask.long())


def test_inputs_stay_as_they_were():
    image, mask = blobs()
    before = image.clone(), mask.clone()
    augment(**STRONG["all"])(image, mask)
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


def test_one_image_alone():
    image, mask = augment(**STRONG["all"])(*blobs(count=1))
    assert image.shape[0] == mask.shape[0] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", STRONG)
def test_a_gpu_does_the_same(name):
    ours = augment(**STRONG[name])(*blobs())
    theirs = augment(**STRONG[name])(*(part.cuda() for part in blobs()))
    torch.testing.assert_close(theirs[0].cpu(), ours[0], atol=1e-3, rtol=0)
    assert (theirs[1].cpu() != ours[1]).float().mean() < 1e-3  # of pixels midway between two


# --- each transform


def test_the_grid_is_torchs_own():
    place = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(place, [3, 1, *SIZE], align_corners=False)
    torch.testing.assert_close(_grid(place, SIZE), expected)


def test_flips_about_as_often_as_asked():
    image, mask = blobs(count=400, size=(8, 10))
    changed, flipped = augment(size=(8, 10), flip=0.3)(image, mask)
    mirrored = [torch.equal(a, b.flip(-1).long()) for a, b in zip(flipped, mask, strict=True)]
    straight = [torch.equal(a, b.long()) for a, b in zip(flipped, mask, strict=True)]
    assert all(a or b for a, b in zip(mirrored, straight, strict=True))
    assert 0.2 < np.mean(mirrored) < 0.4
    for one, original, mirror in zip(changed, normalised(image), mirrored, strict=True):
        assert torch.equal(one, original.flip(-1) if mirror else original)


def numbers(count: int = 2, **chosen: float) -> dict[str, torch.Tensor]:
    """Drawn numbers: in the middle unless chosen."""
    return {name: torch.full((count,), chosen.get(name, 0.5)) for name in DRAWS}


def moved(image, mask, *, flip: bool = False, size=SIZE, scale=(1.0, 1.0), rotate=0.0, **chosen: float):
    settings = AugmentConfig(scale=list(scale), rotate=rotate)
    drawn = numbers(len(image), **chosen)
    place = placement(settings, size, drawn, torch.full((len(image),), flip))
    return sampled(normalised(image), mask, place, size)


def test_placed_where_it_was():
    image, mask = blobs(count=2)
    same_image, same_mask = moved(image, mask)
    torch.testing.assert_close(same_image, normalised(image), atol=1e-4, rtol=0)
    assert torch.equal(same_mask, mask)


def test_placed_mirrored():
    image, mask = blobs(count=2)
    flipped_image, flipped_mask = moved(image, mask, flip=True)
    torch.testing.assert_close(flipped_image, normalised(image).flip(-1), atol=1e-4, rtol=0)
    assert torch.equal(flipped_mask, mask.flip(-1))


@pytest.mark.parametrize(("across", "down"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)])
def test_enlarged_to_the_last_pixel_of_the_border(across, down):
    """At double size a quarter is seen, of the left and top at 0, of the right and bottom at 1."""
    image, mask = blobs(count=2)
    _, seen = moved(image, mask, scale=(2.0, 2.0), across=across, down=down)
    top, left = round(down * SIZE[0] / 2), round(across * SIZE[1] / 2)
    part = mask[:, top : top + SIZE[0] // 2, left : left + SIZE[1] // 2]
    assert torch.equal(seen, part.repeat_interleave(2, 1).repeat_interleave(2, 2))


@pytest.mark.parametrize(("across", "down"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
def test_reduced_lies_whole_within_ignored_pixels(across, down):
    image, mask = blobs(count=2)
    mask[mask == 255] = 0
    _, seen = moved(image, mask, scale=(0.5, 0.5), across=across, down=down)
    assert (seen != 255).float().mean() == pytest.approx(0.25)
    rows = (seen[0] != 255).any(1).nonzero().flatten()
    # The picture is to the right where the window has been moved to the left.
    assert rows[0] == round((1 - down) * SIZE[0] / 2)
    assert set(seen.unique().tolist()) == {*mask.unique().tolist(), 255}


def test_rotated_by_the_angle_without_distortion():
    """A square of 90 degrees comes out as a square, however long the image."""
    mask = torch.zeros(1, 40, 80, dtype=torch.uint8)
    mask[:, 10:30, 50:70] = 1
    image = mask.unsqueeze(1).repeat(1, 3, 1, 1)
    _, turned = moved(image, mask, size=(40, 80), rotate=90.0)  # in the middle: not at all
    assert torch.equal(turned, mask)
    settings = AugmentConfig(rotate=90.0)
    drawn = numbers(1, rotate=1.0)
    place = placement(settings, (80, 80), drawn, torch.tensor([False]))
    square = torch.zeros(1, 80, 80, dtype=torch.uint8)
    square[:, 10:30, 50:70] = 1
    _, turned = sampled(square.unsqueeze(1).float(), square, place, (80, 80))
    assert turned.sum() == square.sum()
    assert torch.equal(turned, square.rot90(1, (1, 2))) or torch.equal(turned, square.rot90(-1, (1, 2)))
    wide = placement(settings, (40, 80), numbers(1, rotate=0.75), torch.tensor([False]))[0]
    to_pixels = torch.diag(torch.tensor([40.0, 20.0]))
    in_pixels = to_pixels @ wide[:, :2] @ to_pixels.inverse()
    turn = math.radians(45)
    expected = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    torch.testing.assert_close(in_pixels, torch.tensor(expected))


def test_scales_lie_within_their_range_evenly_by_logarithm():
    settings = AugmentConfig(scale=[0.5, 2.0])
    drawn = {name: torch.rand(4000, generator=torch.Generator().manual_seed(1)) for name in DRAWS}
    shrink = placement(settings, SIZE, drawn, torch.zeros(4000, dtype=torch.bool))[:, 0, 0]
    assert (shrink >= 0.5 - 1e-6).all()
    assert (shrink <= 2 + 1e-6).all()
    assert shrink.log().mean().abs() < 0.05


# --- crops around rare classes


def test_pixels_are_drawn_from_the_class_of_lowest_order():
    mask = torch.zeros(3, 4, 6, dtype=torch.uint8)
    mask[0, 1, 2] = mask[0, 3, 5] = 7
    mask[0, 0, :3] = 4
    mask[2] = 255
    order = torch.full((3, 256), math.inf)
    order[:, 4], order[:, 7], order[:, 9] = 2.0, 1.0, 0.5
    first = random_pixels(mask, order, torch.full((3,), 0.49))
    second = random_pixels(mask, order, torch.full((3,), 0.51))

    assert first[0].tolist() == pytest.approx([5 / 6 - 1, 3 / 4 - 1])  # of column 2 and row 1
    assert second[0].tolist() == pytest.approx([11 / 6 - 1, 7 / 4 - 1])
    assert first[1:].isnan().all()  # nothing but background, and nothing but ignored pixels
    order[0, 4] = 0.9
    assert random_pixels(mask, order, torch.full((3,), 0.99))[0].tolist() == pytest.approx([5 / 6 - 1, -0.75])


def test_every_pixel_of_a_class_is_drawn_alike():
    mask = torch.zeros(5000, 3, 4, dtype=torch.uint8)
    mask[:, 0, 1] = mask[:, 1, :2] = mask[:, 2, 3] = 3
    order = torch.full((5000, 256), math.inf)
    order[:, 3] = 1.0
    pixel = random_pixels(mask, order, torch.rand(5000, generator=torch.Generator().manual_seed(0)))
    places, counts = ((pixel + 1) / 2 * torch.tensor([4, 3])).floor().unique(dim=0, return_counts=True)
    assert places.tolist() == [[0, 1], [1, 0], [1, 1], [3, 2]]
    assert (counts / 5000 - 0.25).abs().max() < 0.03


def drawn_places(count: int, rotate: float, scale: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Places (B, 2, 3), and where to see a pixel (B, 2)."""
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.rand(count, generator=generator) for name in DRAWS}
    settings = AugmentConfig(scale=scale, rotate=rotate)
    place = placement(settings, SIZE, drawn, drawn["flip"] < 0.5)
    return place, 2 * torch.stack((drawn["across"], drawn["down"]), 1) - 1


@pytest.mark.parametrize("rotate", [0.0, 30.0, 180.0])
def test_the_pixel_lies_in_the_crop(rotate):
    """Wherever it is, up to the corners of the image."""
    count = 2000
    place, where = drawn_places(count, rotate, [1.0, 6.0])
    pixel = 2 * torch.rand(count, 2, generator=torch.Generator().manual_seed(1)) - 1
    pixel[:400] = pixel[:400].sign() * (1 - 1 / torch.tensor(SIZE[::-1]))
    start = place[:, :, 2] + shift_to(pixel, place, where, SIZE)
    seen_at = torch.linalg.solve(place[:, :, :2], pixel - start)

    assert seen_at.abs().max() <= 1
    if not rotate:  # and the crop in the image, but for less than a pixel
        reach = start.abs() + place[:, [0, 1], [0, 1]].abs()
        assert (reach <= 1 + 1 / torch.tensor(SIZE[::-1])).all()
    # Spread over the crop, and not always in its middle.
    assert 0.5 < seen_at[400:].std() < 0.7


def test_a_crop_is_left_alone_without_a_pixel_and_where_all_is_seen():
    place, where = drawn_places(50, 20.0, [0.5, 2.0])
    nowhere = torch.full((50, 2), math.nan)
    assert (shift_to(nowhere, place, where, SIZE) == 0).all()
    enlarged = torch.linalg.det(place[:, :, :2]).abs() < 1
    shift = shift_to(torch.full((50, 2), 0.9), place, where, SIZE)
    assert 5 < enlarged.sum() < 45
    assert torch.equal((shift != 0).any(1), enlarged)


def rarely(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of classes 0 and 1 half and half, with a spot of class 2 on 0.4 % of them somewhere."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(count, *SIZE, dtype=torch.uint8)
    mask[:, :, SIZE[1] // 2 :] = 1
    for number in range(count):
        top, left = (int(torch.randint(side - 3, (), generator=generator)) for side in SIZE)
        mask[number, top : top + 3, left : left + 3] = 2
    return COLORS[mask.long()].permute(0, 3, 1, 2).to(torch.uint8), mask


def shown(count: int = 300, classes: int = 2, **settings: object) -> float:
    """The share of images that still show a class."""
    rarity = [0.0, 1.0, 60.0]
    transform = Augment(AugmentConfig(**settings), SIZE, 0, rarity)
    _, mask = transform(*rarely(count))
    return (mask == classes).flatten(1).any(1).float().mean().item()


def test_rare_classes_are_seen_more_often():
    assert shown(scale=[3.0, 3.0]) < 0.25
    assert shown(scale=[3.0, 3.0], rare_crop=1.0) > 0.95  # of 61 crops one is around class 1
    assert 0.5 < shown(scale=[3.0, 3.0], rare_crop=0.5) < 0.75
    assert shown(scale=[3.0, 3.0], rare_crop=1.0, rotate=20.0, flip=0.5) > 0.93


def test_classes_are_drawn_by_their_rarity():
    """Small crops: what they show is what they were laid around."""
    mask = torch.zeros(3000, *SIZE, dtype=torch.uint8)
    mask[:, :5, :5], mask[:, :5, -5:], mask[:, -5:, -5:] = 1, 2, 3
    image = COLORS[mask.long()].permute(0, 3, 1, 2).to(torch.uint8)
    settings = AugmentConfig(scale=[5.0, 5.0], rare_crop=1.0)
    _, changed = Augment(settings, SIZE, 0, [0.0, 1.0, 3.0, 0.0])(image, mask)
    share = [(changed == label).flatten(1).any(1).float().mean().item() for label in (1, 2, 3)]
    assert share == pytest.approx([0.25, 0.75, 0.0], abs=0.03)


def test_crops_around_rare_classes_leave_all_else_as_it_was():
    """The same flips, scales, colours, in this batch and the next; images that are not chosen, altogether."""
    strong = {**STRONG["all"], "scale": [0.5, 3.0], "cutout": 0.0, "class_mix": 0.0}
    plain, around = (augment(**{**strong, "rare_crop": chance}) for chance in (0.0, 0.5))
    for seed in range(3):
        _, first = plain(*blobs(count=40, seed=seed))
        _, second = around(*blobs(count=40, seed=seed))
        same = (first == second).flatten(1).all(1).float().mean()
        assert 0.4 < same < 0.95
    assert torch.equal(around._generator.get_state(), plain._generator.get_state())


def test_images_of_background_only_are_cropped_as_ever():
    image, mask = blobs()
    mask = torch.where(mask == 255, 255, 0).to(torch.uint8)
    plain, around = (
        augment(scale=[2.0, 3.0])(image, mask),
        augment(scale=[2.0, 3.0], rare_crop=1.0)(image, mask),
    )
    assert torch.equal(plain[0], around[0])
    assert torch.equal(plain[1], around[1])


# --- strength


def test_strength_goes_from_one_end_to_the_other():
    settings = AugmentConfig(**{**STRONG["all"], "rotate": 20.0}, start_strength=0.2, end_strength=0.8)
    assert at_strength(settings, 0.0).rotate == pytest.approx(4.0)
    assert at_strength(settings, 0.5).rotate == pytest.approx(10.0)
    last = at_strength(settings, 1.0)
    assert last.scale == pytest.approx([0.5**0.8, 2**0.8])
    for name in ("flip", "brightness", "hue", "greyscale", "blur", "cutout", "class_mix", "rare_crop"):
        assert getattr(last, name) == pytest.approx(0.8 * getattr(settings, name)), name
    assert (last.start_size, last.start_strength, last.end_strength) == (1.0, 0.2, 0.8)
    assert settings.rotate == 20.0


@pytest.mark.parametrize(("ends", "progress"), [((0.0, 1.0), 0.0), ((1.0, 0.0), 1.0)])
def test_without_strength_nothing_is_done(ends, progress):
    transform = augment(**STRONG["all"], start_strength=ends[0], end_strength=ends[1])
    image, mask = blobs()
    same_image, same_mask = transform(image, mask, progress=progress)
    assert torch.equal(same_image, normalised(image))
    assert torch.equal(same_mask, mask.long())


@pytest.mark.parametrize(("ends", "progress"), [((0.0, 1.0), 1.0), ((1.0, 0.0), 0.0), ((1.0, 1.0), 0.3)])
def test_at_full_strength_all_is_as_ever(ends, progress):
    ours = augment(**STRONG["all"], start_strength=ends[0], end_strength=ends[1])
    first, second = ours(*blobs(), progress=progress), augment(**STRONG["all"])(*blobs())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_images_that_are_larger_are_reduced_smoothly():
    image, mask = blobs(size=(80, 112))
    small_image, small_mask = augment()(image, mask)
    expected = torch.nn.functional.interpolate(normalised(image), SIZE, mode="bilinear", antialias=True)
    torch.testing.assert_close(small_image, expected)
    assert torch.equal(small_mask, mask[:, 1::2, 1::2].long())


@pytest.mark.parametrize(("scale", "expected"), [(0.25, 2), (0.5, 1), (0.8, 0), (2.0, 0)])
def test_images_that_come_out_smaller_are_reduced_smoothly(scale, expected):
    """Noise keeps about the contrast that antialiasing leaves of it."""
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    settings = AugmentConfig(scale=[scale, scale])
    place = placement(settings, (64, 64), numbers(2), torch.tensor([False, True]))
    assert _halvings(place, (64, 64), (64, 64)).tolist() == [expected] * 2
    seen, mask = sampled(noise, torch.zeros(2, 64, 64, dtype=torch.uint8), place, (64, 64))
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
    """(2, 3, H, W) in 0.2..0.7, so that nothing is clipped."""
    return 0.2 + 0.5 * torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(seed))


def recolored_rgb(image: torch.Tensor, settings: AugmentConfig, **chosen: float) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    changed = recolored((image - mean) / std, *color_matrix(settings, numbers(len(image), **chosen)))
    return changed * std + mean


@pytest.mark.parametrize("number", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_as_torchvision_changes_them(name, number):
    image = rgb()
    settings = AugmentConfig(**{name: 0.3})
    factor = 1 + 0.3 * (2 * number - 1)
    expected = getattr(tv, f"adjust_{name}")(image, factor)
    torch.testing.assert_close(recolored_rgb(image, settings, **{name: number}), expected, atol=1e-3, rtol=0)


def test_brightness_contrast_and_saturation_one_after_the_other():
    image = rgb()
    settings = AugmentConfig(brightness=0.2, contrast=0.2, saturation=0.2)
    expected = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(image, 1.1), 0.85), 1.2)
    changed = recolored_rgb(image, settings, brightness=0.75, contrast=0.125, saturation=1.0)
    torch.testing.assert_close(changed, expected, atol=1e-3, rtol=0)


def test_greyscale_as_torchvision_has_it():
    image = rgb()
    changed = recolored_rgb(image, AugmentConfig(greyscale=1.0))
    torch.testing.assert_close(changed, tv.rgb_to_grayscale(image, 3), atol=1e-3, rtol=0)


def test_hues_turn_around_grey():
    settings = AugmentConfig(hue=0.5)
    grey = torch.full((1, 3, 4, 4), 0.4)
    torch.testing.assert_close(recolored_rgb(grey, settings, hue=0.8), grey, atol=1e-5, rtol=0)
    image = rgb()
    once = recolored_rgb(image, settings, hue=0.5 + 0.04)  # 0.04 of a turn
    assert not torch.allclose(once, image, atol=0.005)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close((once * luma).sum(1), (image * luma).sum(1), atol=1e-3, rtol=0)
    back = recolored_rgb(once, settings, hue=0.5 - 0.04)
    torch.testing.assert_close(back, image, atol=2e-3, rtol=0)


def test_blur_as_torchvision_has_it():
    image = torch.rand(4, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor([True, False, True, False])
    sigma = torch.tensor([0.6, 0.6, BLUR_SIGMA[1], 1.0])
    changed = blurred(image, chosen, sigma)
    assert torch.equal(changed[1], image[1])
    assert torch.equal(changed[3], image[3])
    for number in (0, 2):
        expected = tv.gaussian_blur(image[number], [7, 7], [sigma[number].item()] * 2)
        inside = (slice(None), slice(3, -3), slice(3, -3))  # its border is mirrored, ours repeated
        torch.testing.assert_close(changed[number][inside], expected[inside], atol=1e-4, rtol=0)


def test_holes_are_grey_ignored_and_of_moderate_size():
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
    assert torch.equal(changed[kept], normalised(image)[kept])


def test_half_of_the_classes_of_the_image_before_is_laid_over():
    mask = torch.zeros(2, 4, 8, dtype=torch.uint8)
    mask[0, :, 0:2], mask[0, :, 2:4], mask[0, :, 4:6], mask[0, 0, 7] = 1, 2, 3, 255
    mask[1] = 9
    image = torch.stack([torch.full((3, 4, 8), 1.0), torch.full((3, 4, 8), 2.0)])
    ranks = torch.full((2, 256), 0.5)
    ranks[1, 3], ranks[1, 1] = 0.1, 0.2  # of the classes of image 0: two of three
    changed, labels = mixed(image, mask, torch.tensor([False, True]), ranks)
    assert torch.equal(labels[0], mask[0])
    expected = torch.full((4, 8), 9, dtype=torch.uint8)
    expected[:, 0:2], expected[:, 4:6] = 1, 3
    assert torch.equal(labels[1], expected)
    assert torch.equal(changed[1, 0] == 1.0, expected != 9)


def test_every_setting_is_used():
    """Each one alone changes something."""
    for field in dataclasses.fields(AugmentConfig):
        value = [0.5, 0.7] if field.name == "scale" else 20.0 if field.name == "rotate" else 0.5
        image, mask = blobs()
        if field.name in ("rare_crop", "start_strength", "end_strength"):  # changes what others do
            others = {"scale": [2.0, 2.0], "brightness": 0.3}
            without, _ = augment(**others)(image, mask, progress=0.5)
            changed, _ = augment(**others, **{field.name: value})(image, mask, progress=0.5)
            assert not torch.allclose(changed, without, atol=1e-3), field.name
            continue
        changed, labels = augment(**{field.name: value})(image, mask, progress=0.0)
        if field.name == "start_size":
            assert changed.shape != image.shape
            continue
        same = torch.allclose(changed, normalised(image), atol=1e-3) and torch.equal(labels, mask.long())
        assert not same, field.name
