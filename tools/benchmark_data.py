#!/usr/bin/env python
"""Time the reading of a KITTI dataset, and KITTI's metric, with random boxes on one core.

By default there are as many labels as in the training set, and as many evaluated images as in the usual validation
split. Images have KITTI's size but a single color, since only their headers and ends are read before training.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image
from tabulate import tabulate

from clockdistill.data import KITTI_CLASSES
from clockdistill.data.kitti import parse_lines, read_kitti
from clockdistill.engine.arguments import natural
from clockdistill.evaluation.kitti import KITTIEvaluator

NAME = "kitti_benchmark"
# objects in the training set, in thousands
TYPES = dict(Car=28.7, Van=2.9, Truck=1.1, Pedestrian=4.5, Person_sitting=0.2, Cyclist=1.6, Tram=0.5, DontCare=11.3)
OBJECTS = 6.9  # mean number of lines in a label file
NEAR = 5  # detections around each object; the others are anywhere in the image


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return (count, 4) boxes with the sizes of cars, distant to near, as left, top, right, bottom in pixels."""
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
    """Return detections around each object, which have the higher scores, and others anywhere."""
    objects = ([a for a in record["annotations"] if not a["iscrowd"]] * NEAR)[:count]
    boxes, labels = random_boxes(rng, count), rng.integers(len(KITTI_CLASSES), size=count)
    scores = 0.4 * rng.random(count) ** 3
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


def write_kitti(root: Path, records: list[dict]) -> None:
    """Write records in KITTI's layout, all in the split `train`."""
    for folder in ("training/image_2", "training/label_2", "ImageSets"):
        (root / folder).mkdir(parents=True)
    image = root / "image.png"
    Image.new("RGB", (1242, 375)).save(image)
    for record in records:
        os.link(image, root / "training/image_2" / record["file_name"])
        text = "".join(
            f"{a['type']} {a['truncated']:.2f} {a['occluded']} 1.85 {' '.join(f'{x:.2f}' for x in a['bbox'])} "
            "1.67 1.87 3.69 -16.53 2.39 58.49 1.57\n"
            for a in record["annotations"]
        )
        (root / "training/label_2" / record["file_name"]).with_suffix(".txt").write_text(text)
    (root / "ImageSets/train.txt").write_text("".join(f"{Path(r['file_name']).stem}\n" for r in records))


def time_reading(records: list[dict]) -> dict[str, float]:
    """Return the seconds for each kind of reading, the best of three runs."""
    seconds = {"labels": [], "labels, cached": [], "dataset, before training": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_kitti(root, records)
        for _ in range(3):
            parse_lines.cache_clear()
            for name in list(seconds)[:2]:
                start = time.perf_counter()
                for path in (root / "training/label_2").iterdir():
                    parse_lines(path.read_bytes())
                seconds[name].append(time.perf_counter() - start)
            parse_lines.cache_clear()
            start = time.perf_counter()
            loaded, faults = read_kitti(root, "train", KITTI_CLASSES)
            seconds["dataset, before training"].append(time.perf_counter() - start)
            if faults or len(loaded) != len(records):
                raise RuntimeError(f"{len(loaded)} of {len(records)} images, {len(faults)} faults: {faults[:3]}")
    return {name: min(values) for name, values in seconds.items()}


def time_evaluation(records: list[dict], outputs: list[dict]) -> tuple[float, dict[str, float]]:
    """Return the seconds to evaluate, including the result files, and KITTI's results."""
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).thing_classes = list(KITTI_CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        evaluator = KITTIEvaluator(NAME, folder)
        evaluator.reset()
        evaluator.process(records, outputs)
        results = evaluator.evaluate()["kitti"]
        return time.perf_counter() - start, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=natural, default=7481, help="label files to read (default: %(default)s)")
    parser.add_argument("--images", type=natural, default=3769, help="images to evaluate (default: %(default)s)")
    parser.add_argument("--detections", type=natural, default=300, help="detections per image (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)

    records = [random_record(rng, i) for i in range(args.labels)]
    lines = sum(len(record["annotations"]) for record in records)
    rows = [[name, f"{len(records)} files, {lines} lines", s] for name, s in time_reading(records).items()]
    records = records[: args.images]
    outputs = [dict(instances=random_detections(rng, record, args.detections)) for record in records]
    seconds, results = time_evaluation(records, outputs)
    rows.append(["KITTI's metric", f"{len(records)} images, {len(records) * args.detections} detections", seconds])
    print(tabulate(rows, ["task", "size", "seconds"], tablefmt="pipe", floatfmt=".2f"))
    print("\n" + ", ".join(f"{key} {value:.1f}" for key, value in results.items() if key.endswith("AP40")))


if __name__ == "__main__":
    main()
