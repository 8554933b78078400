"""COCO's AP of an exported file, on labeled images or against the detections of another file."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from tqdm import tqdm

from ..evaluation.coco import COCOEvaluator
from .runtime import ExportedDetector
from .write import quiet

MIN_SCORE = 0.3  # of a detection that another file must find
DATASET = "exported model"


class Evaluation:
    """Measures AP, in percent.

    Args:
        records: Detectron2's standard dicts with `annotations`.
        read: yields the image (3, h, w), uint8 RGB, of each record after test-time resizing.
    """

    def __init__(self, records: list[dict], read: Callable[[list[dict]], Iterable[np.ndarray]]):
        self.records = records
        self.read = read

    def __call__(self, path: Path, description: str) -> float:
        """Return the AP of a file; NaN if no image has an object."""
        model = ExportedDetector(path)
        with (
            registered(self.records, model.metadata["class_names"]),
            tempfile.TemporaryDirectory() as folder,
            # the evaluator prints its own tables
            quiet("detectron2"),
            quiet("clockdistill"),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            evaluator = COCOEvaluator(DATASET, tasks=["bbox"], distributed=False, output_dir=folder)
            evaluator.reset()
            for inputs, outputs in detect(model, self.records, self.read, description):
                evaluator.process([inputs], [outputs])
            return evaluator.evaluate()["bbox"]["AP"]


def detect(
    model: ExportedDetector, records: list[dict], read: Callable[[list[dict]], Iterable[np.ndarray]], description: str
) -> Iterator[tuple[dict, dict]]:
    """Yield each record with its image, and the model's output."""
    for record, image in zip(tqdm(records, description, leave=False), read(records), strict=True):
        inputs = record | dict(image=torch.from_numpy(image))
        yield inputs, model([inputs])[0]


def confident_detections(
    path: Path, records: list[dict], read: Callable[[list[dict]], Iterable[np.ndarray]]
) -> list[dict]:
    """Return the records with a file's detections of at least `MIN_SCORE` as annotations."""
    labeled = []
    for record, outputs in detect(ExportedDetector(path), records, read, "labels"):
        instances = outputs["instances"]
        instances = instances[instances.scores >= MIN_SCORE]
        boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
        annotations: list[dict[str, Any]] = [
            dict(bbox=box, bbox_mode=BoxMode.XYWH_ABS, category_id=label)
            for box, label in zip(boxes, instances.pred_classes.tolist(), strict=True)
        ]
        labeled.append({key: value for key, value in record.items() if key != "image"} | dict(annotations=annotations))
    return labeled


@contextlib.contextmanager
def registered(records: list[dict], class_names: list[str]) -> Iterator[None]:
    """Put records into Detectron2's catalogs as `DATASET`."""
    DatasetCatalog.register(DATASET, lambda: records)
    MetadataCatalog.get(DATASET).thing_classes = class_names
    try:
        yield
    finally:
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.remove(DATASET)
