"""Further transforms of single images: their masks and random numbers."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from cocoseg.data.dataset import Split, as_is
from cocoseg.data.extra_transforms import ExtraTransforms, TransformedSplit
from cocoseg.data.sampling import Shuffle
from cocoseg.errors import CocosegError

V2 = "torchvision.transforms.v2"
SIZE = 12, 16
ROTATE = {"_target_": f"{V2}.RandomRotation", "degrees": [45, 45], "fill": 7}


def pair(images: int = 2) -> tuple[Tensor, Tensor]:
    """Images of different brightness, and masks of class 1 above class 2."""
    mask = torch.ones(images, *SIZE, dtype=torch.uint8)
    mask[:, 6:] = 2
    brightness = torch.arange(100, 100 + images, dtype=torch.uint8).view(-1, 1, 1, 1)
    return brightness.expand(-1, 3, *SIZE).clone(), mask


@pytest.mark.parametrize(
    "node",
    [
        ROTATE,
        {"_target_": f"{V2}.RandomApply", "transforms": [ROTATE], "p": 1.0},
        {"_target_": f"{V2}.Compose", "transforms": [{"_target_": f"{V2}.Identity"}, ROTATE]},
    ],
    ids=["alone", "in a list", "among others"],
)
def test_uncovered_pixels_are_ignored(node):
    image, mask = ExtraTransforms([node], SIZE)(*pair(), seeds=[(0,), (1,)])
    assert (image.dtype, mask.dtype, type(image), type(mask)) == (torch.uint8, torch.uint8, Tensor, Tensor)
    assert set(mask.unique().tolist()) == {1, 2, 255}  # no value in between
    assert image[0, 0, 0, 0] == 7
    assert mask[0, 0, 0] == 255
    assert ((image[0] == 7).all(0) <= (mask[0] == 255)).all()


def test_transforms_follow_the_list_and_move_image_and_mask_together():
    flip = {"_target_": f"{V2}.RandomVerticalFlip", "p": 1.0}
    image, mask = pair()
    image[:, :, 6:] = 50
    moved = ExtraTransforms([flip, {"_target_": f"{V2}.RandomInvert", "p": 1.0}], SIZE)(
        image, mask, seeds=[(0,), (1,)]
    )
    assert torch.equal(moved[0], 255 - image.flip(2))
    assert torch.equal(moved[1], mask.flip(1))


def test_random_numbers_depend_on_the_seed_alone():
    extra = ExtraTransforms([{"_target_": f"{V2}.RandomAffine", "degrees": 90}], SIZE)
    before = torch.get_rng_state()
    first = extra(*pair(3), seeds=[(0, 1), (0, 2), (1, 1)])
    assert torch.equal(torch.get_rng_state(), before)
    again = extra(*pair(3), seeds=[(0, 1), (0, 1), (1, 1)])
    assert torch.equal(first[1][[0, 2]], again[1][[0, 2]])
    assert torch.equal(again[1][0], again[1][1])
    assert len({tuple(mask.flatten().tolist()) for mask in first[1]}) == 3


class Memory:
    """A data set of images in memory."""

    def __len__(self) -> int:
        return 6

    def read(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        image, mask = pair(6)
        return image[indices], mask[indices]


def test_an_epoch_does_not_depend_on_workers_and_the_next_one_differs():
    extra = ExtraTransforms([{"_target_": f"{V2}.RandomAffine", "degrees": 90}], SIZE)
    epochs = []
    for workers in (0, 2):
        split = TransformedSplit(Split(Memory()), extra, seed=3)
        loader = DataLoader(
            split, 2, sampler=Shuffle(6, 3, counts_epochs=True), collate_fn=as_is, num_workers=workers,
            persistent_workers=workers > 0,
        )  # fmt: skip
        epochs.append([tuple(torch.cat(part) for part in zip(*loader, strict=True)) for _ in range(2)])
    for alone, helped in zip(*epochs, strict=True):
        assert torch.equal(alone[0], helped[0])
        assert torch.equal(alone[1], helped[1])
    first, second = ({int(i.max()): m for i, m in zip(*epoch, strict=True)} for epoch in epochs[0])
    assert first.keys() == second.keys() == set(range(100, 106))
    assert not any(torch.equal(first[key], second[key]) for key in first)


def swaps(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(image, tv_tensors.Image)
    assert isinstance(mask, tv_tensors.Mask)
    return mask, image


def fails(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    raise RuntimeError("no\nuse")


def floats(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return image / 255, mask


def function(name: str) -> Callable:
    return globals()[name]


OWN = "test_extra_transforms.function"


def noise(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    numbers = [random.random(), np.random.rand(), float(torch.rand(1))]
    return image + torch.tensor(numbers).mul(100).byte().view(3, 1, 1), mask


def test_transforms_may_draw_from_python_numpy_and_torch():
    extra = ExtraTransforms([{"_target_": OWN, "name": "noise"}], SIZE)
    states = random.getstate(), np.random.get_state()[1].tolist()
    (first, _), (again, _) = (extra(*pair(1), seeds=[(0, 1)]) for _ in range(2))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    assert torch.equal(first, again)
    other = extra(*pair(1), seeds=[(0, 2)])[0]
    assert (first != other).all()


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (
            {"_target_": f"{V2}.RandomCrop", "size": 8},
            f"{V2}.RandomCrop makes (3, 8, 8) torch.uint8, (8, 8) torch.uint8 of (3, 12, 16), (12, 16) uint8",
        ),
        ({"_target_": OWN, "name": "floats"}, f"{OWN} makes (3, 12, 16) torch.float32"),
        ({"_target_": OWN, "name": "fails"}, f"{OWN} fails on uint8 tv_tensors: no use"),
        ({"_target_": OWN, "name": "swaps"}, f"{OWN} makes (12, 16) torch.uint8, (3, 12, 16)"),
        ({"_target_": f"{V2}.RandomRotation", "degree": 3}, f"{V2}.RandomRotation: "),
        ({"_target_": f"{V2}.RandomRotatio", "degrees": 3}, f"{V2}.RandomRotatio can't be"),
        ({"degrees": 3}, "no _target_ in it"),
    ],
)
def test_unsuitable_transforms_are_refused_at_once(node, sentence):
    with pytest.raises(CocosegError) as raised:
        ExtraTransforms([node], SIZE)
    assert raised.value.sentence.startswith(f"augment.extra: {sentence}")
