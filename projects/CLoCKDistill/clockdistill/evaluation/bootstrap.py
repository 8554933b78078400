"""COCO's AP on resampled images, for confidence intervals by the bootstrap."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def match_detections(annotations: str, detections: Sequence[dict]) -> COCOeval:
    """Match the detections of each image as COCO's AP does, over all IoUs, objects of all sizes and 100 per image.

    Args:
        annotations: file in COCO's format.
        detections: `image_id`, `category_id`, `bbox` (left, top, width, height) and `score` of each.
    """
    # it prints its progress
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        # loadRes refuses an empty list
        found = truth.loadRes(list(detections)) if detections else COCO()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
    return evaluation


def resampled_ap(evaluation: COCOeval, weights: np.ndarray) -> np.ndarray:
    """Return the AP of each resample: that of pycocotools on a dataset in which each image occurs `weights` times.

    Only true positives can change the interpolated precision, and the number of detections that rank above one of them
    is a sum over images, so a matrix product yields all resamples. Detections of a class with equal scores are in the
    order of the images.

    Args:
        evaluation: from `match_detections`.
        weights: (B, N) int, how often each of the N images, in the order of `evaluation.params.imgIds`, is in each
            resample.

    Returns:
        (B,) float in percent, NaN for a resample without objects.
    """
    params = evaluation.params
    images = len(params.imgIds)
    ap = np.full((len(params.catIds), len(weights)), np.nan)
    for category in range(len(params.catIds)):
        results = evaluation.evalImgs[category * images : (category + 1) * images]
        numbers, results = zip(*((i, r) for i, r in enumerate(results) if r), strict=True) if any(results) else ((), ())
        if not results:
            continue
        objects = np.zeros(images, int)
        objects[list(numbers)] = [np.count_nonzero(r["gtIgnore"] == 0) for r in results]
        order = np.argsort(-np.concatenate([r["dtScores"] for r in results]), kind="mergesort")
        image = np.repeat(numbers, [len(r["dtScores"]) for r in results])[order]
        matched, ignored = (
            np.concatenate([r[key] for r in results], axis=1)[:, order].astype(bool)
            for key in ("dtMatches", "dtIgnore")
        )
        total = weights @ objects
        values = [
            _average_precision(image[~i], m[~i], weights, total, params.recThrs)
            for m, i in zip(matched, ignored, strict=True)
        ]
        ap[category] = np.where(total > 0, np.mean(values, axis=0), np.nan)
    present = ~np.isnan(ap)
    return 100 * np.divide(
        np.where(present, ap, 0).sum(0), present.sum(0), out=np.full(len(weights), np.nan), where=present.any(0)
    )


def _average_precision(
    image: np.ndarray, correct: np.ndarray, weights: np.ndarray, objects: np.ndarray, recalls: np.ndarray
) -> np.ndarray:
    """Return the AP (B,) in [0, 1] of one class at one IoU.

    Args:
        image: (D,) index of each detection's image, from the highest score to the lowest.
        correct: (D,) bool, whether it is a true positive.
        weights: (B, N) as in `resampled_ap`.
        objects: (B,) number of objects in each resample.
        recalls: (R,) recall points, increasing.
    """
    positions = np.flatnonzero(correct)
    if not len(positions):
        return np.zeros(len(weights))
    # (P, N): detections of each image down to each true positive
    ranked = np.zeros((len(positions), weights.shape[1]))
    np.add.at(ranked, (np.searchsorted(positions, np.arange(positions[-1] + 1)), image[: positions[-1] + 1]), 1)
    detections = weights.astype(float) @ ranked.cumsum(0).T
    true = weights[:, image[positions]].cumsum(1)
    precision = np.divide(true, detections, out=np.zeros_like(detections), where=detections > 0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # the number of true positives at each recall point, rounded as the quotient is
    needed = {n: np.searchsorted(np.arange(n + 1) / n, recalls) for n in np.unique(objects) if n}
    ap = np.zeros(len(weights))
    for sample, n in enumerate(objects):
        if n:
            index = np.searchsorted(true[sample], needed[n])
            ap[sample] = precision[sample, index[index < len(positions)]].sum() / len(recalls)
    return ap
