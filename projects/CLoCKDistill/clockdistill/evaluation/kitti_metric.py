"""Average precision of KITTI's 2D object benchmark (Geiger et al., CVPR 2012), by the rules of its development kit.

They are those of `evaluate_object.cpp`, peculiarities included. For one class and difficulty:

- An object counts if it is of the class, taller than the difficulty's minimum height, and no more occluded or truncated
  than the difficulty allows. Other objects of the class, those of exactly the minimum height included, and objects of
  the neighbouring class are ignored: a match with one is neither a true nor a false positive.
- A detection below the minimum height is ignored too, but it can still be matched to an object. One of exactly the
  minimum height counts. This applies to detections of every class, because the kit tests the height before the class.
  (It truncates heights to whole pixels first, which changes nothing, because the minimum is a whole number.)
- Recall is read from a first matching of all detections: the objects, in the order of their file, take the detection
  of the highest score among those that overlap them by more than the class's least IoU and are not taken.
- Precision comes from a second matching at each of at most 41 scores: objects take the detection of the highest IoU,
  and a small one only where there is no other.
- What is left over is a false positive unless it is small, or more than the least IoU's share of its area lies in one
  DontCare region.

Of equals the first in its file is taken. There are no more scores than objects that are found, and precision is 0 at
the rest of the 41 steps of recall: with fewer than 41 objects even perfect detections have less than 100 %.

Boxes are (left, top, right, bottom), and their width is right - left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.kitti import DONT_CARE, NEIGHBOUR

MIN_OVERLAP = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
RECALL_STEPS = 40


@dataclass(frozen=True)
class Difficulty:
    """What an object must satisfy to count: height in pixels, KITTI's level of occlusion, truncated share."""

    min_height: float
    max_occluded: int
    max_truncated: float

    def admits(self, height, occluded, truncated):
        """Whether objects count: of numbers, or of arrays of them."""
        return (height > self.min_height) & (occluded <= self.max_occluded) & (truncated <= self.max_truncated)


DIFFICULTIES = {
    "easy": Difficulty(40, 0, 0.15),
    "moderate": Difficulty(25, 1, 0.30),
    "hard": Difficulty(25, 2, 0.50),
}
SMALL = max(d.min_height for d in DIFFICULTIES.values())


@dataclass(frozen=True)
class Labels:
    """The n lines of an image's label file, in their order, DontCare regions among them."""

    types: np.ndarray  # (n,) str
    boxes: np.ndarray  # (n, 4) float64, pixels
    occluded: np.ndarray  # (n,) int
    truncated: np.ndarray  # (n,) float64


@dataclass(frozen=True)
class Detections:
    """The n lines of an image's result file, in their order."""

    types: np.ndarray  # (n,) str
    boxes: np.ndarray  # (n, 4) float64, pixels
    scores: np.ndarray  # (n,) float64


@dataclass(frozen=True)
class Frame:
    """What one image holds for one class: n objects of it or its neighbour, and m detections that overlap any of them.

    All other detections are only ever false positives: those of the class outside DontCare regions are `lone`.
    """

    is_neighbour: np.ndarray  # (n,) bool
    heights: np.ndarray  # (n,) pixels
    occluded: np.ndarray  # (n,)
    truncated: np.ndarray  # (n,)
    overlaps: np.ndarray  # (n, m): IoU, or 0 where it is not above the class's least one
    is_class: np.ndarray  # (m,) bool: False for those of other classes, which are SMALL
    in_region: np.ndarray  # (m,) bool: on a DontCare region
    found_heights: np.ndarray  # (m,) pixels
    scores: np.ndarray  # (m,)
    lone_heights: np.ndarray  # (l,) pixels
    lone_scores: np.ndarray  # (l,)

    def ignored(self, difficulty: Difficulty) -> np.ndarray:
        """(n,) bool"""
        return self.is_neighbour | ~difficulty.admits(self.heights, self.occluded, self.truncated)


def evaluate_kitti(
    labels: Sequence[Labels], detections: Sequence[Detections], classes: Sequence[str]
) -> dict[str, float]:
    """AP of every class, difficulty and number of recall points.

    Args:
        labels, detections: of the same images, in the same order.
        classes: any of Car, Pedestrian and Cyclist.

    Returns:
        "Car/easy/AP40" and so on to percent. NaN where no object counts. (The kit prints 0 there, and nothing at all
        for a class that was never detected, which here has 0.) NaN too where the kit's precision is 0 / 0: at one of
        the scores all that is left are detections that neither count nor are wrong.
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
    """What the image holds for the class `name`."""
    min_overlap = MIN_OVERLAP[name]
    is_object = (labels.types == name) | (labels.types == NEIGHBOUR.get(name, name))
    heights = labels.boxes[is_object, 3] - labels.boxes[is_object, 1]
    found_heights = np.abs(detections.boxes[:, 1] - detections.boxes[:, 3])
    is_class = detections.types == name
    matters = is_class | (found_heights < SMALL)
    is_class, found_heights = is_class[matters], found_heights[matters]
    boxes, scores = detections.boxes[matters], detections.scores[matters]

    intersections = intersect(labels.boxes[is_object], boxes)
    overlaps = divide(intersections, area(labels.boxes[is_object])[:, None] + area(boxes) - intersections)
    overlaps[overlaps <= min_overlap] = 0
    covered = divide(intersect(labels.boxes[labels.types == DONT_CARE], boxes), area(boxes))
    in_region = (covered > min_overlap).any(0)

    touches = (overlaps > 0).any(0)
    lone = is_class & ~touches & ~in_region
    return Frame(
        is_neighbour=labels.types[is_object] != name,
        heights=heights,
        occluded=labels.occluded[is_object],
        truncated=labels.truncated[is_object],
        overlaps=overlaps[:, touches],
        is_class=is_class[touches],
        in_region=in_region[touches],
        found_heights=found_heights[touches],
        scores=scores[touches],
        lone_heights=found_heights[lone],
        lone_scores=scores[lone],
    )


def area(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) to (n,), square pixels"""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def intersect(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, 4) and (m, 4) to (n, m): the area, in square pixels, that both cover."""
    upper_left = np.maximum(a[:, None, :2], b[:, :2])
    lower_right = np.minimum(a[:, None, 2:], b[:, 2:])
    extent = np.maximum(lower_right - upper_left, 0)
    return extent[..., 0] * extent[..., 1]


def divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where there is no part: empty boxes have no whole either."""
    return np.divide(part, whole, out=np.zeros_like(part), where=part > 0)


def precision_curve(frames: Sequence[Frame], difficulty: Difficulty) -> np.ndarray:
    """Highest precision at or beyond each of 41 steps of recall, 0 to 1; all NaN where no object counts: (41,)."""
    count = sum(np.count_nonzero(~frame.ignored(difficulty)) for frame in frames)
    if count == 0:
        return np.full(RECALL_STEPS + 1, np.nan)
    overlapping = [frame for frame in frames if len(frame.scores)]
    hits = [score for frame in overlapping for score in found_scores(frame, difficulty)]
    thresholds = recall_thresholds(hits, count)

    lone = np.concatenate([frame.lone_scores[frame.lone_heights >= difficulty.min_height] for frame in frames])
    right, wrong = 0, len(lone) - np.searchsorted(np.sort(lone), thresholds)
    for frame in overlapping:
        right_here, wrong_here = count_matches(frame, difficulty, thresholds)
        right += right_here
        wrong += wrong_here

    precision = np.zeros(RECALL_STEPS + 1)
    with np.errstate(invalid="ignore"):
        precision[: len(thresholds)] = right / (right + wrong)
    # as C++ takes a maximum: NaN where the range begins with it, else without it
    highest = np.fmax.accumulate(precision[::-1])[::-1]
    return np.where(np.isnan(precision), np.nan, highest)


def found_scores(frame: Frame, difficulty: Difficulty) -> list[float]:
    """Scores of the detections that find the objects that count, all detections present."""
    small = frame.found_heights < difficulty.min_height
    candidates = (frame.overlaps > 0) & (frame.is_class | small)
    taken = np.full(len(frame.scores), False)
    hits = []
    for near, ignored in zip(candidates, frame.ignored(difficulty), strict=True):
        near = np.flatnonzero(near & ~taken)
        if len(near):
            best = near[frame.scores[near].argmax()]
            taken[best] = True
            if not (ignored or small[best]):
                hits.append(float(frame.scores[best]))
    return hits


def recall_thresholds(hits: Sequence[float], count: int) -> np.ndarray:
    """The scores, at most 41 and falling, whose recall is nearest to 0, 1/40, 2/40 and so on, as far as it reaches.

    Args:
        hits: scores at which an object is found, (n,).
        count: of the objects that are to be found, at least n.
    """
    thresholds = []
    # summed up as the kit does it: what is rounded decides between equals
    recall = 0.0
    for index, score in enumerate(sorted(hits, reverse=True), 1):
        next_is_nearer = (index + 1) / count - recall < recall - index / count
        if next_is_nearer and index < len(hits):
            continue
        thresholds.append(score)
        recall += 1 / RECALL_STEPS
    return np.array(thresholds)


def count_matches(frame: Frame, difficulty: Difficulty, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True positives, and false ones that are not lone, among detections of at least each of k scores: (k,), (k,)."""
    # a small one is only taken where there is no other, and then nothing is right or wrong: it can be left out
    counts = frame.is_class & (frame.found_heights >= difficulty.min_height)
    free = counts & (frame.scores >= thresholds[:, None])
    rows = np.arange(len(thresholds))
    right = np.zeros(len(thresholds), int)
    for overlaps, ignored in zip(frame.overlaps, frame.ignored(difficulty), strict=True):
        candidates = overlaps * free
        best = candidates.argmax(1)
        is_found = candidates[rows, best] > 0
        free[rows, best] &= ~is_found
        if not ignored:
            right += is_found
    wrong = (free & ~frame.in_region).sum(1)
    return right, wrong
