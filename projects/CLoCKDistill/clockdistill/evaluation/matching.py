"""True and false positives by COCO's rules, as pycocotools applies them, for each image and over a dataset."""

import contextlib
import gc
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.structures import BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MIN_OVERLAP = 0.5


@dataclass(frozen=True)
class Matches:
    """Errors among the n annotations and m predictions of an image, in their order.

    In the order of their scores, predictions are matched to the free object of their class with the highest IoU, which
    must be at least 0.5.

    Attributes:
        false_negatives: (n,) bool, False for ignored regions.
        false_positives: (m,) bool.
        ignored: (m,) bool, predictions in ignored regions or below the threshold.
    """

    false_negatives: np.ndarray
    false_positives: np.ndarray
    ignored: np.ndarray

    @property
    def num_errors(self) -> int:
        return int(self.false_negatives.sum() + self.false_positives.sum())

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN), or 1 if there are neither objects nor predictions."""
        tp = int((~self.false_positives & ~self.ignored).sum())
        return 2 * tp / (2 * tp + self.num_errors) if tp + self.num_errors else 1.0


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector, which would walk over pycocotools' many small objects again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@without_garbage_collection()
def evaluate_coco(records: Sequence[dict], predictions: Sequence[Instances], num_classes: int) -> COCOeval:
    """Run pycocotools up to `accumulate`, at an IoU of 0.5, with objects of all sizes and all predictions.

    Args:
        records: images as Detectron2 dataset dicts; annotations with `iscrowd` are ignored regions.
        predictions: `pred_boxes` in pixels, `scores` and `pred_classes` of each image, on the CPU.
    """
    objects, results = [], []
    # ids start at 1, because pycocotools uses 0 for no match
    for number, (record, instances) in enumerate(zip(records, predictions, strict=True)):
        for a in record["annotations"]:
            box = BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS)
            objects.append(_entry(len(objects) + 1, number, a["category_id"], box) | dict(iscrowd=a.get("iscrowd", 0)))
        boxes = BoxMode.convert(instances.pred_boxes.tensor.double(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
        for box, label, score in zip(boxes, instances.pred_classes.tolist(), instances.scores.tolist(), strict=True):
            results.append(_entry(len(results) + 1, number, label, box) | dict(score=score))
    images = [dict(id=number) for number in range(len(records))]
    # it prints its progress
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(images, objects, num_classes), _coco(images, results, num_classes), "bbox")
        evaluation.params.iouThrs = np.array([MIN_OVERLAP])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, float("inf")]], ["all"]
        evaluation.params.maxDets = [max((len(instances) for instances in predictions), default=0)]
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


@without_garbage_collection()
def match(
    records: Sequence[dict], predictions: Sequence[Instances], num_classes: int, threshold: float = 0.0
) -> list[Matches]:
    """Match the predictions of at least `threshold` to the objects of each image, as in `evaluate_coco`."""
    confident = [instances[instances.scores >= threshold] for instances in predictions]
    evaluation = evaluate_coco(records, confident, num_classes)
    fn, fp, ignored = set(), set(), set()
    for result in filter(None, evaluation.evalImgs):
        unmatched = (result["gtMatches"][0] == 0) & (np.array(result["gtIgnore"]) == 0)
        fn.update(np.array(result["gtIds"], int)[unmatched].tolist())
        ids = np.array(result["dtIds"], int)
        is_ignored = result["dtIgnore"][0].astype(bool)
        ignored.update(ids[is_ignored].tolist())
        fp.update(ids[(result["dtMatches"][0] == 0) & ~is_ignored].tolist())

    matches = []
    first_object = first_result = 1
    for record, instances in zip(records, predictions, strict=True):
        is_confident = (instances.scores >= threshold).numpy()
        objects = range(first_object, first_object + len(record["annotations"]))
        results = range(first_result, first_result + int(is_confident.sum()))
        is_fp, is_ignored = np.zeros(len(instances), bool), ~is_confident
        is_fp[is_confident] = [number in fp for number in results]
        is_ignored[is_confident] = [number in ignored for number in results]
        matches.append(Matches(np.array([number in fn for number in objects], bool), is_fp, is_ignored))
        first_object, first_result = objects.stop, results.stop
    return matches


def worst_images(matches: Sequence[Sequence[Matches]], count: int) -> list[int]:
    """Return the indices of the `count` images with the lowest F1, worst first.

    Args:
        matches: for each model, the matches of all images. F1 is averaged over models; ties go to the image with more
            errors, then to the first.
    """
    images = list(zip(*matches, strict=True))
    f1 = [round(float(np.mean([m.f1 for m in models])), 9) for models in images]
    errors = [sum(m.num_errors for m in models) for models in images]
    return sorted(range(len(images)), key=lambda i: (f1[i], -errors[i], i))[:count]
