"""Predictions as a COCO data set to train on, or to correct in an annotation tool: an annotation per region.

https://cocodataset.org/#format-data (object detection); `score` is an addition.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from threading import Lock
from typing import Any

import msgspec
import numpy as np
from pycocotools import mask as rle

from cocoseg.config import PredictConfig
from cocoseg.files import whole_file
from cocoseg.images.regions import Region, find_regions, outline
from cocoseg.inference.coco_results import Entries, category_ids, entries_of_all, write_array
from cocoseg.inference.find_images import ImageFile
from cocoseg.inference.manifest import Entry
from cocoseg.inference.results import Results
from cocoseg.labels import IGNORE_INDEX

DATASET = "coco_dataset.json"
LARGE = 2**25  # pixels; only one larger image is in memory at a time


def write_coco_dataset(
    images: Mapping[int, ImageFile], entries: Mapping[str, Entry], results: Results, config: PredictConfig
) -> str:
    """Write `coco_dataset.json` from masks and confidence. Returns the number of regions, for the log.

    Args:
        images: images by id.
        entries: entries of the manifest.

    Raises:
        CocosegError: a file of the results is damaged.
    """
    labels = results.encoding.labels
    ids = category_ids(labels)
    if min(ids[1:], default=1) < 1:  # annotation tools take 0 for no category
        ids = list(range(len(labels)))
    one_at_a_time, kinds = Lock(), Counter[int]()

    def describe(number: int, image: ImageFile) -> dict[str, Any]:
        entry = entries[image.result_name]
        return {"id": number, "file_name": image.name, "width": entry.width, "height": entry.height}

    def annotate(item: dict[str, Any]) -> Entries:
        number = item["id"]
        with one_at_a_time if item["width"] * item["height"] > LARGE else nullcontext():
            found = annotations_of(*results.read(images[number].result_name), ids, config)
            return [{"image_id": number, **annotation} for annotation in found]

    def numbered(annotations: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for number, annotation in enumerate(annotations, start=1):
            kinds[annotation["iscrowd"]] += 1
            yield {"id": number, **annotation}

    listed = [describe(*item) for item in images.items()]
    categories = [{"id": ids[index], "name": labels.names[index]} for index in range(1, len(ids))]
    with whole_file(results.output / DATASET) as part, part.open("wb") as file:
        file.write(b'{"categories": ' + msgspec.json.encode(categories) + b', "images": ')
        write_array(file, listed)
        file.write(b', "annotations": ')
        write_array(file, numbered(entries_of_all(annotate, listed)))
        file.write(b"}\n")
    return f"{kinds[0]} regions" + f" and {kinds[1]} to be ignored" * (kinds[1] > 0)


def annotations_of(
    mask: np.ndarray, confidence: np.ndarray, ids: Sequence[int], config: PredictConfig
) -> Iterator[dict[str, Any]]:
    """Make an annotation of each region of a mask, except those of background.

    `iscrowd` 1 marks ignored pixels and, with `below=ignore`, regions below `min_score` or `min_area`.

    Args:
        mask: (H, W) uint8 class indices.
        confidence: (H, W) uint8, 255 times the probability of the class in the mask.
        ids: category id of each class index.
    """
    for region in find_regions(mask, confidence):
        score = region.mean / 255
        is_void = region.value == IGNORE_INDEX
        is_below = score < config.min_score or region.area < config.min_area
        if region.value == 0 or (is_below and not is_void and config.below == "background"):
            continue
        encoded = encode(region, mask.shape)
        yield {
            "category_id": ids[1 if is_void else region.value],
            "iscrowd": int(is_below or is_void),
            "score": round(score, 4),
            "area": region.area,
            "bbox": rle.toBbox(encoded).tolist(),
            "segmentation": encoded if config.coco_dataset == "rle" else [outline(region, len(mask))],
        }


def encode(region: Region, size: Sequence[int]) -> dict[str, Any]:
    """COCO's compressed run-length encoding of a region of a mask of this height and width."""
    begins, ends = region.starts, region.starts + region.lengths
    is_new = np.append(True, begins[1:] != ends[:-1])  # False where a run goes on at the top of a column
    edges = np.column_stack((begins[is_new], ends[np.roll(is_new, -1)])).ravel()
    counts = np.diff(edges, prepend=0, append=size[0] * size[1]).tolist()
    counts = counts if counts[-1] else counts[:-1]  # no empty run at the end
    encoded = rle.frPyObjects({"size": list(size), "counts": counts}, *size)
    return {"size": list(size), "counts": encoded["counts"].decode()}
