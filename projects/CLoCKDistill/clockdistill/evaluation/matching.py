"""Which predictions are right by COCO's rules, which pycocotools applies: image by image, and precision over recall."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.structures import BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MIN_OVERLAP = 0.5


@dataclass(frozen=True)
class Matches:
    """One image's n annotations and m predictions, in their order.

    Of a class, predictions are matched by score to the object that they overlap most, with an IoU of at least 0.5.

    Attributes:
        missed: (n,), objects without a prediction; ignored regions are none.
        wrong: (m,), predictions without an object, outside ignored regions.
        ignored: (m,), predictions that ignored regions take.
    """

    missed: np.ndarray
    wrong: np.ndarray
    ignored: np.ndarray

    @property
    def mistakes(self) -> int:
        return int(self.missed.sum() + self.wrong.sum())

    @property
    def f1(self) -> float:
        """2 right / (2 right + wrong + missed); 1 where there is nothing to find and nothing was found."""
        right = int((~self.wrong & ~self.ignored).sum())
        return 2 * right / (2 * right + self.mistakes) if right + self.mistakes else 1.0


def evaluate_coco(records: Sequence[dict], found: Sequence[Instances], num_classes: int) -> COCOeval:
    """pycocotools' evaluation at an IoU of 0.5, over objects of all sizes and all predictions, up to `accumulate`.

    Args:
        records: images as Detectron2's catalog has them; annotations with `iscrowd` are ignored regions.
        found: `pred_boxes` in pixels, `scores` and `pred_classes` of each, on the CPU.
    """
    objects, predictions = [], []
    # zero stands for no match
    for number, (record, instances) in enumerate(zip(records, found, strict=True)):
        for a in record["annotations"]:
            box = BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS)
            objects.append(_entry(len(objects) + 1, number, a["category_id"], box) | dict(iscrowd=a.get("iscrowd", 0)))
        boxes = BoxMode.convert(instances.pred_boxes.tensor.double(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
        for box, label, score in zip(boxes, instances.pred_classes.tolist(), instances.scores.tolist(), strict=True):
            predictions.append(_entry(len(predictions) + 1, number, label, box) | dict(score=score))
    images = [dict(id=number) for number in range(len(records))]
    # it reports its progress on the standard output
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(images, objects, num_classes), _coco(images, predictions, num_classes), "bbox")
        evaluation.params.iouThrs = np.array([MIN_OVERLAP])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, float("inf")]], ["all"]
        evaluation.params.maxDets = [max((len(instances) for instances in found), default=0)]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _entry(number: int, image: int, label: int, box: list[float]) -> dict:
    return dict(id=number, image_id=image, category_id=label, bbox=box, area=box[2] * box[3])


def _coco(images: list[dict], annotations: list[dict], num_classes: int) -> COCO:
    coco = COCO()
    categories = [dict(id=label) for label in range(num_classes)]
    coco.dataset = dict(images=images, annotations=annotations, categories=categories)
    coco.createIndex()
    return coco


def match(
    records: Sequence[dict], found: Sequence[Instances], num_classes: int, threshold: float = 0.0
) -> list[Matches]:
    """Every image's matches among the predictions of at least `threshold`; arguments as in `evaluate_coco`.

    The predictions below count as neither wrong nor right: they are ignored.
    """
    confident = [instances[instances.scores >= threshold] for instances in found]
    evaluation = evaluate_coco(records, confident, num_classes)
    missed, wrong, ignored = set(), set(), set()
    for result in filter(None, evaluation.evalImgs):
        unmatched = (result["gtMatches"][0] == 0) & (np.array(result["gtIgnore"]) == 0)
        missed.update(np.array(result["gtIds"], int)[unmatched].tolist())
        numbers = np.array(result["dtIds"], int)
        is_ignored = result["dtIgnore"][0].astype(bool)
        ignored.update(numbers[is_ignored].tolist())
        wrong.update(numbers[(result["dtMatches"][0] == 0) & ~is_ignored].tolist())

    matches = []
    first_object = first_prediction = 1
    for record, instances in zip(records, found, strict=True):
        shown = (instances.scores >= threshold).numpy()
        objects = range(first_object, first_object + len(record["annotations"]))
        predictions = range(first_prediction, first_prediction + int(shown.sum()))
        is_wrong, is_ignored = np.zeros(len(shown), bool), ~shown
        is_wrong[shown] = [number in wrong for number in predictions]
        is_ignored[shown] = [number in ignored for number in predictions]
        matches.append(Matches(np.array([number in missed for number in objects], bool), is_wrong, is_ignored))
        first_object, first_prediction = objects.stop, predictions.stop
    return matches


def worst_images(matches: Sequence[Sequence[Matches]], count: int) -> list[int]:
    """Indices of the images with the lowest F1, the worst first.

    Args:
        matches: of each model, those of every image. An image's F1 is the mean over the models; of equal ones the image
            with more mistakes is the worse, and then the earlier.
        count: how many.
    """
    images = list(zip(*matches, strict=True))
    f1 = [round(float(np.mean([m.f1 for m in models])), 9) for models in images]
    mistakes = [sum(m.mistakes for m in models) for models in images]
    return sorted(range(len(images)), key=lambda i: (f1[i], -mistakes[i], i))[:count]
