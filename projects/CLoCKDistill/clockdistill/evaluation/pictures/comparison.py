"""What models find in an image, beside the ground truth."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data.detection_utils import annotations_to_instances, read_image
from detectron2.structures import Boxes, BoxMode, Instances

from ..matching import Matches, match
from .sheet import CLASS_COLOURS, MISTAKE, Sheet, class_colour, draw_box, draw_label, write_png

MISSED = dict(ec=MISTAKE, lw=1.7, ls=(0, (3, 2)))
WRONG = dict(lw=1.1, ls=(0, (1, 1)))
IGNORED = dict(ec="#FFFFFF", lw=1.0, ls=":")

Predictor = Callable[[list[dict]], list[dict]]


def save_comparisons(
    predictors: dict[str, Predictor],
    inputs: Iterable[dict],
    records: Iterable[dict],
    class_names: Sequence[str],
    output_dir: str,
    threshold: float = 0.3,
) -> list[str]:
    """Write `comparison_<name>.png` for every image file: the ground truth, then what each predictor finds.

    Args:
        predictors: from a batch to a list of `{"instances": Instances}`, by the title of their panel.
        inputs: images as the predictors take them.
        records: of the same images, as Detectron2's catalog has them: `file_name`, `annotations`.
        class_names: by class id.
        output_dir: exists.
        threshold: lowest score that is drawn.

    Returns:
        The paths of the pictures.
    """
    paths = []
    for x, record in zip(inputs, records, strict=True):
        image = read_image(record["file_name"], "RGB")
        with torch.no_grad():
            found = {title: predict([x])[0]["instances"].to("cpu") for title, predict in predictors.items()}
        picture = draw_comparison(image, record, found, class_names, threshold)
        paths.append(os.path.join(output_dir, f"comparison_{Path(record['file_name']).stem}.png"))
        write_png(paths[-1], picture)
    return paths


def ground_truth(record: dict, image_size: tuple[int, int]) -> tuple[Instances, Boxes]:
    """Objects of a catalog's record with `gt_boxes` and `gt_classes`, and the regions that evaluation ignores."""
    objects = [a for a in record["annotations"] if not a.get("iscrowd")]
    crowds = [a for a in record["annotations"] if a.get("iscrowd")]
    # a region that several classes ignore is there for each of them
    regions = {tuple(BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)): None for a in crowds}
    return annotations_to_instances(objects, image_size), Boxes(torch.tensor(list(regions)).reshape(-1, 4))


def draw_comparison(
    image: np.ndarray,
    record: dict,
    found: dict[str, Instances],
    class_names: Sequence[str],
    threshold: float = 0.3,
) -> np.ndarray:
    """One picture of the ground truth and of what each model finds, panels side by side, or below one another where
    the image is more than twice as wide as high.

    Boxes have the colour of their class. Objects are numbered, as the record has them; ignored regions are dotted.
    Predictions have their score in percent; a wrong one is dotted, with a red label. A dashed red box is an object that
    was missed. What is wrong and what is missed is `match`'s to say. Where there are more classes than colours, boxes
    also have its name.

    Args:
        image: (H, W, 3) uint8 RGB.
        record: of the image, as Detectron2's catalog has it: `annotations`.
        found: `pred_boxes` in pixels, `scores`, `pred_classes`, by the title of their panel.
        class_names: by class id.
        threshold: lowest score that is drawn.

    Returns:
        (H', W', 3) uint8 RGB, see `Sheet`.
    """
    truth, ignored = ground_truth(record, image.shape[:2])
    is_object = [not a.get("iscrowd") for a in record["annotations"]]
    count = 1 + len(found)
    stacked = image.shape[1] > 2 * image.shape[0]
    sheet = Sheet(image, *((count, 1) if stacked else (1, count)))
    names = class_names if len(class_names) > len(CLASS_COLOURS) else None

    axes = sheet.panel(0, 0, f"Ground truth: {_count(len(truth), 'object')}")
    for box in ignored.tensor.tolist():
        draw_box(axes, box, **IGNORED)
    for number, (box, label) in enumerate(zip(truth.gt_boxes.tensor.tolist(), truth.gt_classes.tolist(), strict=True)):
        draw_box(axes, box, class_colour(label))
        draw_label(axes, box, f"{number}" if names is None else f"{number} {names[label]}", class_colour(label))

    shown = set(truth.gt_classes.tolist())
    for index, (title, instances) in enumerate(found.items(), 1):
        matches = match([record], [instances], len(class_names), threshold)[0]
        missed = matches.missed[is_object]
        summary = f"{title}: {len(truth) - missed.sum()} of {len(truth)} found, {matches.wrong.sum()} wrong"
        axes = sheet.panel(*((index, 0) if stacked else (0, index)), summary)
        for box in truth.gt_boxes.tensor[torch.from_numpy(missed)].tolist():
            draw_box(axes, box, **MISSED)
        draw_predictions(axes, instances, threshold, names, matches)
        shown.update(instances.pred_classes[instances.scores >= threshold].tolist())

    patch = dict(ec="#8A9199", lw=0.5)
    legend = {class_names[label]: dict(fc=class_colour(label), **patch) for label in sorted(shown) if names is None}
    if len(ignored):
        legend["ignored"] = IGNORED | dict(fill=False, ec="#6B7280")
    if found:
        legend["wrong"] = WRONG | dict(fc=MISTAKE, ec=MISTAKE)
        legend["missed"] = MISSED | dict(fill=False)
    sheet.legend(legend)
    return sheet.pixels()


def draw_predictions(
    axes, instances: Instances, threshold: float, names: Sequence[str] | None, matches: Matches | None = None
) -> None:
    """Boxes of at least `threshold`, the surest on top, with score and, where `names` are given, class."""
    boxes, labels, scores = instances.pred_boxes.tensor.tolist(), instances.pred_classes.tolist(), instances.scores
    for i in scores.argsort().tolist():
        if scores[i] < threshold:
            continue
        wrong = matches is not None and matches.wrong[i]
        draw_box(axes, boxes[i], class_colour(labels[i]), **(WRONG if wrong else {}))
        text = f"{'' if names is None else names[labels[i]] + ' '}{100 * scores[i]:.0f}"
        colours = (MISTAKE, "white") if wrong else (class_colour(labels[i]), "black")
        draw_label(axes, boxes[i], text, *colours)


def draw_detections(
    image: np.ndarray, instances: Instances, class_names: Sequence[str], threshold: float
) -> np.ndarray:
    """The image, enlarged where it is small, with boxes of at least `threshold`, their classes and scores.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: `pred_boxes` in pixels of the image, `scores`, `pred_classes`, on the CPU.
    """
    sheet = Sheet(image, title_height=0)
    draw_predictions(sheet.panel(0, 0), instances, threshold, class_names)
    return sheet.pixels()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
