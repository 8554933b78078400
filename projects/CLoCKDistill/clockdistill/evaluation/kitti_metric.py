"""Average precision of KITTI's 2D object benchmark (Geiger et al., CVPR 2012).

It follows the development kit's `evaluate_object.cpp`, peculiarities included. For one class and difficulty:

- An object counts if it is of the class, taller than the difficulty's minimum height, and no more occluded or truncated
  than the difficulty allows. Other objects of the class, those of exactly the minimum height included, and objects of
  the neighboring class are ignored: a match with one is neither a true nor a false positive, and missing one is not a
  false negative.
- A detection below the minimum height is ignored too, but it can still be matched to an object. One of exactly the
  minimum height counts. This applies to detections of every class, because the kit tests the height before the class.
  (It truncates heights to whole pixels first, which changes nothing, because the minimum is a whole number.)
- Recall comes from a first matching, with all detections. In file order, each object takes the unmatched detection of
  the highest score among those whose IoU with it exceeds the class's threshold.
- Precision comes from a second matching at each of at most 41 score thresholds. Each object takes the detection of the
  highest IoU, and an ignored one only if there is no other.
- An unmatched detection is a false positive unless it is ignored, or a single DontCare region covers a share of its
  area above the IoU threshold.

Ties go to the first line of the file. There are at most as many score thresholds as true positives, and precision is 0
at the remaining recall steps: with fewer than 41 objects even perfect detections score below 100%.

Boxes are (left, top, right, bottom) with a width of right - left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.kitti import DIFFICULTIES, DONT_CARE, NEIGHBOR, Difficulty

MIN_OVERLAP = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
RECALL_STEPS = 40
MAX_MIN_HEIGHT = max(d.min_height for d in DIFFICULTIES.values())


@dataclass(frozen=True)
class Labels:
    """The n lines of an image's label file in file order, DontCare regions included."""

    types: np.ndarray  # (n,) str
    boxes: np.ndarray  # (n, 4) float64, pixels
    occluded: np.ndarray  # (n,) int
    truncated: np.ndarray  # (n,) float64


@dataclass(frozen=True)
class Detections:
    """The n lines of an image's result file in file order."""

    types: np.ndarray  # (n,) str
    boxes: np.ndarray  # (n, 4) float64, pixels
    scores: np.ndarray  # (n,) float64


@dataclass(frozen=True)
class Frame:
    """One image for one class: n objects of the class or its neighbor, and the m detections that can match one.

    The class's other detections are background: false positives unless they are ignored or in a DontCare region.
    """

    is_neighbor: np.ndarray  # (n,) bool
    heights: np.ndarray  # (n,) pixels
    occluded: np.ndarray  # (n,)
    truncated: np.ndarray  # (n,)
    overlaps: np.ndarray  # (n, m): IoU, or 0 where it does not exceed the class's threshold
    is_class: np.ndarray  # (m,) bool: False for detections of other classes, which are below MAX_MIN_HEIGHT
    in_region: np.ndarray  # (m,) bool: in a DontCare region
    detection_heights: np.ndarray  # (m,) pixels
    scores: np.ndarray  # (m,)
    background_heights: np.ndarray  # (b,) pixels, of background detections outside DontCare regions
    background_scores: np.ndarray  # (b,)

    def ignored(self, difficulty: Difficulty) -> np.ndarray:
        """(n,) bool"""
        return self.is_neighbor | ~difficulty.admits(self.heights, self.occluded, self.truncated)


def evaluate_kitti(
    labels: Sequence[Labels], detections: Sequence[Detections], classes: Sequence[str]
) -> dict[str, float]:
    """Compute AP for each class, difficulty and number of recall points.

    Args:
        labels, detections: of the same images, in the same order.
        classes: any of Car, Pedestrian and Cyclist.

    Returns:
        Percentages by "Car/easy/AP40" and so on. NaN if no object counts. (The kit prints 0 then, and omits a class
        without detections, which is 0 here.) Also NaN where the kit divides 0 by 0: at a score threshold with neither
        true nor false positives.
    """
    results = {}
    for name in classes:
        frames = [build_frame(*pair, name) for pair in zip(labels, detections, strict=True)]
        for title, difficulty in DIFFICULTIES.items():
            precision = precision_curve(frames, difficulty)
            results[f"{name}/{title}/AP40"] = float(100 * precision[1:].mean())
            results[f"{name}/{title}/AP11"] = float(100 * precision[::4].mean())
    return results


def build_frame(labels: Labels, detections: Detections, name: str) -> Frame:
    """Select the objects and detections of an image that matter for the class `name`."""
    min_overlap = MIN_OVERLAP[name]
    is_object = (labels.types == name) | (labels.types == NEIGHBOR.get(name, name))
    heights = labels.boxes[is_object, 3] - labels.boxes[is_object, 1]
    detection_heights = np.abs(detections.boxes[:, 1] - detections.boxes[:, 3])
    is_class = detections.types == name
    relevant = is_class | (detection_heights < MAX_MIN_HEIGHT)
    is_class, detection_heights = is_class[relevant], detection_heights[relevant]
    boxes, scores = detections.boxes[relevant], detections.scores[relevant]

    intersections = intersect(labels.boxes[is_object], boxes)
    overlaps = divide(intersections, area(labels.boxes[is_object])[:, None] + area(boxes) - intersections)
    overlaps[overlaps <= min_overlap] = 0
    covered = divide(intersect(labels.boxes[labels.types == DONT_CARE], boxes), area(boxes))
    in_region = (covered > min_overlap).any(0)

    can_match = (overlaps > 0).any(0)
    is_background = is_class & ~can_match & ~in_region
    return Frame(
        is_neighbor=labels.types[is_object] != name,
        heights=heights,
        occluded=labels.occluded[is_object],
        truncated=labels.truncated[is_object],
        overlaps=overlaps[:, can_match],
        is_class=is_class[can_match],
        in_region=in_region[can_match],
        detection_heights=detection_heights[can_match],
        scores=scores[can_match],
        background_heights=detection_heights[is_background],
        background_scores=scores[is_background],
    )


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas (n,) of boxes (n, 4), in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def intersect(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas (n, m) of the intersections of boxes (n, 4) and (m, 4), in square pixels."""
    upper_left = np.maximum(a[:, None, :2], b[:, :2])
    lower_right = np.minimum(a[:, None, 2:], b[:, 2:])
    extent = np.maximum(lower_right - upper_left, 0)
    return extent[..., 0] * extent[..., 1]


def divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, or 0 where part is 0, because the whole of empty boxes is 0 too."""
    return np.divide(part, whole, out=np.zeros_like(part), where=part > 0)


def precision_curve(frames: Sequence[Frame], difficulty: Difficulty) -> np.ndarray:
    """Interpolated precision (41,) in [0, 1] at each recall step; all NaN if no object counts."""
    count = sum(np.count_nonzero(~frame.ignored(difficulty)) for frame in frames)
    if count == 0:
        return np.full(RECALL_STEPS + 1, np.nan)
    overlapping = [frame for frame in frames if len(frame.scores)]
    scores = [score for frame in overlapping for score in true_positive_scores(frame, difficulty)]
    thresholds = recall_thresholds(scores, count)

    background = np.concatenate([f.background_scores[f.background_heights >= difficulty.min_height] for f in frames])
    tp, fp = 0, len(background) - np.searchsorted(np.sort(background), thresholds)
    for frame in overlapping:
        frame_tp, frame_fp = count_matches(frame, difficulty, thresholds)
        tp += frame_tp
        fp += frame_fp

    precision = np.zeros(RECALL_STEPS + 1)
    with np.errstate(invalid="ignore"):
        precision[: len(thresholds)] = tp / (tp + fp)
    # C++'s maximum is NaN if the range starts with NaN, and skips NaN otherwise
    highest = np.fmax.accumulate(precision[::-1])[::-1]
    return np.where(np.isnan(precision), np.nan, highest)


def true_positive_scores(frame: Frame, difficulty: Difficulty) -> list[float]:
    """Scores of the true positives in the first matching, with all detections."""
    small = frame.detection_heights < difficulty.min_height
    candidates = (frame.overlaps > 0) & (frame.is_class | small)
    taken = np.full(len(frame.scores), False)
    scores = []
    for near, ignored in zip(candidates, frame.ignored(difficulty), strict=True):
        near = np.flatnonzero(near & ~taken)
        if len(near):
            best = near[frame.scores[near].argmax()]
            taken[best] = True
            if not (ignored or small[best]):
                scores.append(float(frame.scores[best]))
    return scores


def recall_thresholds(scores: Sequence[float], count: int) -> np.ndarray:
    """The scores, at most 41 and descending, whose recall is nearest to 0, 1/40, 2/40 and so on.

    Args:
        scores: of the n true positives.
        count: number of objects, at least n.
    """
    thresholds = []
    # summed up like in the kit, because rounding breaks ties
    recall = 0.0
    for index, score in enumerate(sorted(scores, reverse=True), 1):
        next_is_nearer = (index + 1) / count - recall < recall - index / count
        if next_is_nearer and index < len(scores):
            continue
        thresholds.append(score)
        recall += 1 / RECALL_STEPS
    return np.array(thresholds)


def count_matches(frame: Frame, difficulty: Difficulty, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of true positives (k,) and of false positives off the background (k,) at each of k score thresholds."""
    # ignored detections can be left out: one is matched only if there is no other, and is neither a true nor a false
    # positive
    counts = frame.is_class & (frame.detection_heights >= difficulty.min_height)
    free = counts & (frame.scores >= thresholds[:, None])
    rows = np.arange(len(thresholds))
    tp = np.zeros(len(thresholds), int)
    for overlaps, ignored in zip(frame.overlaps, frame.ignored(difficulty), strict=True):
        candidates = overlaps * free
        best = candidates.argmax(1)
        is_matched = candidates[rows, best] > 0
        free[rows, best] &= ~is_matched
        if not ignored:
            tp += is_matched
    fp = (free & ~frame.in_region).sum(1)
    return tp, fp
