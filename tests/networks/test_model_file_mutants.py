"""Model files with seeded faults: a line that says what is wrong, or a model that predicts."""

import io
import random
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mutants
from cocoseg.inference.model import load_model
from cocoseg.networks.model_file import save_model
from tiny import SPEC, tiny_unet

COUNT = 400
IMAGE = np.zeros((20, 24, 3), dtype=np.uint8)


def endless(depth: int) -> list[Any]:
    """2^depth values that refer to two."""
    values: list[Any] = ["x", "x"]
    for _ in range(depth):
        values = [values, values]
    return values


ODD = [
    *(None, True, False, -1, 0, 1, 3, 5, 255, 300, 10**6, 10**9, 2**63, 10**30, 10**5000, 0.5, 1e308),
    *(float("nan"), "", "x", "cocoseg.ResidualUNet", "cocoseg.TimmUNet", "os.system", "hf-hub:a/b"),
    *("bilinear", "\x1b[31m", "\ud800", "x" * 10**6, [], {}, [[]], [1, 2], {"a": 1}, (1,), endless(60)),
    *(torch.zeros(()), torch.zeros(3), torch.zeros(1).expand(10**12), torch.zeros(2, 2).to_sparse()),
    *(torch.zeros(4, dtype=torch.complex64), torch.zeros(3, 0), torch.empty(10**9, device="meta"), b"x"),
    *(bytearray(3), {1, 2}, torch.float32, torch.Size([1]), {"_target_": "cocoseg.UNet"}, {1: 2}),
]


def use(path: Path) -> None:
    model = load_model(path)
    mask = model.predict(IMAGE)
    assert mask.shape == IMAGE.shape[:2]
    assert mask.max() < len(model.labels)
    assert len(model.labels.palette()) == 256


def repacked(content: bytes, rng: random.Random) -> bytes:
    """The zip archive with an entry damaged, left out, twice, compressed or very large."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    number = rng.choice((0, rng.randrange(len(entries))))  # the first one holds the description
    name, part = entries[number]
    packing = zipfile.ZIP_STORED
    match rng.choice(("damage", "damage", "damage", "remove", "repeat", "compress", "bomb")):
        case "damage":
            entries[number] = (name, mutants.damaged(part, rng))
        case "remove":
            del entries[number]
        case "repeat":
            entries.append((name, mutants.damaged(part, rng)))
        case "compress":
            packing = zipfile.ZIP_DEFLATED
        case "bomb":
            packing = zipfile.ZIP_DEFLATED
            entries[number] = (name, bytes(2**26))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", packing) as archive:
        for name, part in entries:
            archive.writestr(name, part)
    return packed.getvalue()


def main(folder: Path) -> None:
    original = folder / "original.pth"
    save_model(original, tiny_unet().state_dict(), SPEC, {"iou": [0.5, None, 0.25], "miou": 0.25})
    content, saved = original.read_bytes(), torch.load(original, weights_only=True)
    described = {key: value for key, value in saved.items() if key != "state_dict"}
    for number in range(COUNT):
        rng, path = random.Random(number), folder / f"{number}.pth"
        match number % 4:
            case 0:
                path.write_bytes(mutants.damaged(content, rng))
            case 1:
                path.write_bytes(repacked(content, rng))
            case 2:
                torch.save(mutants.changed(saved, ODD, rng), path)
            case 3:
                changed = mutants.changed(described, ODD, rng)
                legacy = rng.random() < 0.2
                whole = {**changed, "state_dict": saved["state_dict"]}
                torch.save(whole, path, _use_new_zipfile_serialization=not legacy)
        mutants.judge(str(path), partial(use, path))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_mutants_of_model_files(tmp_path: Path) -> None:
    found = mutants.run(__file__, tmp_path)
    assert found[mutants.ACCEPTED] + found[mutants.REFUSED] == COUNT
    assert min(found[mutants.ACCEPTED], found[mutants.REFUSED]) > COUNT // 8  # else they test little


if __name__ == "__main__":
    torch.set_num_threads(1)  # a process with threads can't be forked
    main(Path(sys.argv[1]))
