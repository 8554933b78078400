#!/usr/bin/env python
"""Times KITTI's metric, result files included, on random boxes: as many images as the usual validation split has."""

import argparse
import tempfile
import time

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from clockdistill.data import KITTI_CLASSES
from clockdistill.evaluation.kitti import KITTIEvaluator

NAME = "kitti_benchmark"
# objects of the training set in thousands
TYPES = dict(Car=28.7, Van=2.9, Truck=1.1, Pedestrian=4.5, Person_sitting=0.2, Cyclist=1.6, Tram=0.5, DontCare=11.3)
OBJECTS = 6.9  # lines of a label file, on average
NEAR = 5  # detections around an object, before the rest of an image's detections lie anywhere


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) of the sizes that cars have in the distance and nearby."""
    height = np.exp(rng.normal(np.log(45), 0.7, count)).clip(8, 300)
    width = height * rng.uniform(0.4, 2.2, count)
    left, top = rng.uniform(0, 1242 - width.clip(max=1200)), rng.uniform(0, 375 - height)
    return np.stack([left, top, left + width, top + height], 1).round(2)


def random_record(rng: np.random.Generator, image_id: int) -> dict:
    names = rng.choice(list(TYPES), rng.poisson(OBJECTS), p=np.array(list(TYPES.values())) / sum(TYPES.values()))
    annotations = [
        dict(
            type=str(name),
            bbox=box,
            category_id=KITTI_CLASSES.index(name) if name in KITTI_CLASSES else 0,
            iscrowd=int(name not in KITTI_CLASSES),
            truncated=float(rng.choice([0, 0, 0, 0.2, 0.4])),
            occluded=int(rng.choice([0, 0, 1, 2])),
        )
        for name, box in zip(names, random_boxes(rng, len(names)).tolist(), strict=True)
    ]
    return dict(file_name=f"{image_id:06d}.png", image_id=image_id, annotations=annotations)


def random_detections(rng: np.random.Generator, record: dict, count: int) -> Instances:
    """Some around each object, which have the higher scores, and the rest anywhere."""
    objects = [a for a in record["annotations"] if not a["iscrowd"]] * NEAR
    boxes, labels = random_boxes(rng, count), rng.integers(len(KITTI_CLASSES), size=count)
    scores = 0.4 * rng.random(count) ** 3
    objects = objects[:count]
    if objects:
        near = np.array([a["bbox"] for a in objects])
        extent = np.tile(near[:, 2:] - near[:, :2], 2)
        boxes[: len(near)] = near + rng.normal(0, 0.06, near.shape) * extent
        labels[: len(near)] = [a["category_id"] for a in objects]
        scores[: len(near)] = rng.random(len(near))
    instances = Instances((375, 1242))
    instances.pred_boxes = Boxes(torch.from_numpy(boxes).float())
    instances.scores = torch.from_numpy(scores).float()
    instances.pred_classes = torch.from_numpy(labels)
    return instances


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=3769, help="(default: %(default)s)")
    parser.add_argument("--detections", type=int, default=300, help="of an image (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    records = [random_record(rng, i) for i in range(args.images)]
    outputs = [dict(instances=random_detections(rng, record, args.detections)) for record in records]
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).thing_classes = list(KITTI_CLASSES)

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        evaluator = KITTIEvaluator(NAME, folder)
        evaluator.reset()
        evaluator.process(records, outputs)
        results = evaluator.evaluate()["kitti"]
        seconds = time.perf_counter() - start
    lines = sum(len(record["annotations"]) for record in records)
    print(f"{args.images} images, {lines} lines of labels, {args.images * args.detections} detections: {seconds:.1f} s")
    print(", ".join(f"{key} {value:.1f}" for key, value in results.items() if key.endswith("AP40")))


if __name__ == "__main__":
    main()
