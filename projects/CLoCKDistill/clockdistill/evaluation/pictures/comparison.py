"""Predictions of models side by side with the ground truth."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.structures import Boxes, BoxMode, Instances

from ..matching import Matches, match
from .sheet import CLASS_COLORS, DASHED, ERROR_COLOR, GRAY, Sheet, class_color, draw_box, draw_label

FALSE_NEGATIVE = dict(ec=ERROR_COLOR, lw=1.7, ls=DASHED)
FALSE_POSITIVE = dict(lw=1.1, ls=(0, (1, 1)))
IGNORED = dict(ec="#FFFFFF", lw=1.0, ls=":")


def ground_truth(record: dict, image_size: tuple[int, int]) -> tuple[Instances, Boxes]:
    """Return a record's objects, with `gt_boxes` and `gt_classes`, and its ignored regions."""
    objects = [a for a in record["annotations"] if not a.get("iscrowd")]
    crowds = [a for a in record["annotations"] if a.get("iscrowd")]
    # records repeat a region for each class that ignores it
    regions = {tuple(BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)): None for a in crowds}
    return annotations_to_instances(objects, image_size), Boxes(torch.tensor(list(regions)).reshape(-1, 4))


def draw_comparison(
    image: np.ndarray,
    record: dict,
    predictions: dict[str, Instances],
    class_names: Sequence[str],
    threshold: float = 0.3,
) -> np.ndarray:
    """Draw the ground truth and the predictions of each model, in columns, or in rows if the image is wide.

    Boxes have the color of their class, and also its name if there are more classes than colors. Objects are labeled
    with their number in the record, predictions with their score in percent. False positives, see `match`, are dotted
    with a red label, false negatives dashed in red, and ignored regions dotted in white.

    Args:
        image: (H, W, 3) uint8 RGB.
        record: the image's Detectron2 dataset dict, with `annotations`.
        predictions: `pred_boxes` in pixels, `scores` and `pred_classes`, by the title of their panel.
        class_names: by class id.
        threshold: minimum score to draw.

    Returns:
        (H', W', 3) uint8 RGB, see `Sheet`.
    """
    truth, ignored = ground_truth(record, image.shape[:2])
    is_object = [not a.get("iscrowd") for a in record["annotations"]]
    count = 1 + len(predictions)
    stacked = image.shape[1] > 2 * image.shape[0]
    sheet = Sheet(image, *((count, 1) if stacked else (1, count)))
    names = class_names if len(class_names) > len(CLASS_COLORS) else None

    axes = sheet.panel(0, 0, f"Ground truth: {_count(len(truth), 'object')}")
    for box in ignored.tensor.tolist():
        draw_box(axes, box, **IGNORED)
    for number, (box, label) in enumerate(zip(truth.gt_boxes.tensor.tolist(), truth.gt_classes.tolist(), strict=True)):
        draw_box(axes, box, class_color(label))
        draw_label(axes, box, f"{number}" if names is None else f"{number} {names[label]}", class_color(label))

    shown = set(truth.gt_classes.tolist())
    for index, (title, instances) in enumerate(predictions.items(), 1):
        matches = match([record], [instances], len(class_names), threshold)[0]
        fn, fp = matches.false_negatives[is_object], int(matches.false_positives.sum())
        summary = f"{title}: {len(truth) - fn.sum()} of {len(truth)} detected, {_count(fp, 'false positive')}"
        axes = sheet.panel(*((index, 0) if stacked else (0, index)), summary)
        for box in truth.gt_boxes.tensor[torch.from_numpy(fn)].tolist():
            draw_box(axes, box, **FALSE_NEGATIVE)
        draw_predictions(axes, instances, threshold, names, matches)
        shown.update(instances.pred_classes[instances.scores >= threshold].tolist())

    patch = dict(ec="#8A9199", lw=0.5)
    legend = {class_names[label]: dict(fc=class_color(label), **patch) for label in sorted(shown) if names is None}
    if len(ignored):
        legend["ignored"] = IGNORED | dict(fill=False, ec=GRAY)
    if predictions:
        legend["false positive"] = FALSE_POSITIVE | dict(fc=ERROR_COLOR, ec=ERROR_COLOR)
        legend["false negative"] = FALSE_NEGATIVE | dict(fill=False)
    sheet.legend(legend)
    return sheet.pixels()


def draw_predictions(
    axes, instances: Instances, threshold: float, names: Sequence[str] | None, matches: Matches | None = None
) -> None:
    """Draw the predictions of at least `threshold`, the highest scores on top, with class names if given."""
    boxes, labels, scores = instances.pred_boxes.tensor.tolist(), instances.pred_classes.tolist(), instances.scores
    for i in scores.argsort().tolist():
        if scores[i] < threshold:
            continue
        is_false = matches is not None and matches.false_positives[i]
        draw_box(axes, boxes[i], class_color(labels[i]), **(FALSE_POSITIVE if is_false else {}))
        text = f"{'' if names is None else names[labels[i]] + ' '}{100 * scores[i]:.0f}"
        colors = (ERROR_COLOR, "white") if is_false else (class_color(labels[i]), "black")
        draw_label(axes, boxes[i], text, *colors)


def draw_detections(
    image: np.ndarray, instances: Instances, class_names: Sequence[str], threshold: float
) -> np.ndarray:
    """Draw predictions of at least `threshold`, with classes and scores, on an image; a small image is enlarged.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: `pred_boxes` in pixels, `scores` and `pred_classes`, on the CPU.
    """
    sheet = Sheet(image, title_height=0)
    draw_predictions(sheet.panel(0, 0), instances, threshold, class_names)
    return sheet.pixels()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
