"""Pictures of what detectors find, and of how their training went."""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data.detection_utils import annotations_to_instances, read_image
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from ..errors import UserError

# Bright hues that differ for most colour-blind eyes too (after Okabe and Ito); red is kept for what was missed.
CLASS_COLOURS = ("#56C8FF", "#FFB000", "#4BE37A", "#FF8AD8", "#FFF25C", "#B79BFF", "#2FE0C8", "#FFFFFF")
MISSED = dict(ec="#FF3B30", lw=1.7, ls=(0, (3, 2)))
IGNORED = dict(ec="#FFFFFF", lw=1.0, ls=":")
RUN_COLOURS = ("#3B6FB6", "#D9541E", "#2E8B57", "#8E5AA8", "#B8860B")
TERM_COLOURS = ("#C9CED6", "#F7C59F", "#F08A4B", "#D9541E", "#9CC3E6", "#3B6FB6", "#8E5AA8")
INK = "#24292F"
PICTURE_WIDTH = 960  # pixels to which smaller images are enlarged, about: in whole steps
TITLE_HEIGHT = 26  # pixels
DPI = 100

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
        inputs: images as the test loader gives them.
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
        picture = draw_comparison(image, *ground_truth(record, image.shape[:2]), found, class_names, threshold)
        paths.append(os.path.join(output_dir, f"comparison_{Path(record['file_name']).stem}.png"))
        cv2.imwrite(paths[-1], picture[:, :, ::-1])
    return paths


def ground_truth(record: dict, image_size: tuple[int, int]) -> tuple[Instances, Boxes]:
    """Objects of a catalog's record with `gt_boxes` and `gt_classes`, and the regions that evaluation ignores."""
    objects = [a for a in record["annotations"] if not a.get("iscrowd")]
    crowds = [a for a in record["annotations"] if a.get("iscrowd")]
    # a region that several classes ignore is there for each of them
    regions = {tuple(BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)): None for a in crowds}
    return annotations_to_instances(objects, image_size), Boxes(torch.tensor(list(regions)).reshape(-1, 4))


def find_missed(truth: Instances, found: Instances, threshold: float) -> Tensor:
    """Whether each object has no prediction of its class with IoU >= 0.5 and score >= threshold: (n,), bool."""
    found = found[found.scores >= threshold]
    same_class = truth.gt_classes[:, None] == found.pred_classes[None]
    return ~(same_class & (pairwise_iou(truth.gt_boxes, found.pred_boxes) >= 0.5)).any(1)


def draw_comparison(
    image: np.ndarray,
    truth: Instances,
    ignored: Boxes,
    found: dict[str, Instances],
    class_names: Sequence[str],
    threshold: float = 0.3,
) -> np.ndarray:
    """One picture of panels below one another: the ground truth, then what each model finds.

    Boxes have the colour of their class and, where there are scores, the score in percent; ignored regions are dotted.
    Where there are more classes than colours, boxes also have its name. A dashed red box is an object that was missed:
    see `find_missed`.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: `gt_boxes` in pixels of the image, `gt_classes`.
        ignored: regions without ground truth, in pixels.
        found: `pred_boxes` in pixels, `scores`, `pred_classes`, by the title of their panel.
        class_names: by class id.
        threshold: lowest score that is drawn.

    Returns:
        (H', W', 3) uint8 RGB: panels below one another, each the image enlarged `max(1, round(960 / W))` times below a
        title of 26 pixels.
    """
    scale = max(1, round(PICTURE_WIDTH / image.shape[1]))
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    height, width = image.shape[:2]
    panels = 1 + len(found)
    total = panels * (height + TITLE_HEIGHT)
    # a hundredth more, for sizes in pixels are rounded down
    figure = Figure(figsize=((width + 0.01) / DPI, (total + 0.01) / DPI), dpi=DPI, facecolor="white")
    has_names = len(class_names) > len(CLASS_COLOURS)

    def panel(index: int, title: str) -> Axes:
        """Axes of one panel, in pixels of the enlarged image."""
        top = index * (height + TITLE_HEIGHT)
        axes = figure.add_axes([0, 1 - (top + TITLE_HEIGHT + height) / total, 1, height / total])
        axes.imshow(image, extent=(0, width, height, 0), interpolation="none", aspect="auto")
        axes.axis("off")
        middle = 1 - (top + TITLE_HEIGHT / 2) / total
        figure.text(8 / width, middle, title, va="center_baseline", fontsize=10.5, fontweight="bold", color=INK)
        return axes

    axes = panel(0, f"Ground truth: {_count(len(truth), 'object')}")
    for box in (ignored.tensor * scale).tolist():
        _draw_box(axes, box, **IGNORED)
    for box, label in zip((truth.gt_boxes.tensor * scale).tolist(), truth.gt_classes.tolist(), strict=True):
        _draw_box(axes, box, _colour(label))
        if has_names:
            _draw_label(axes, box, _colour(label), class_names[label])

    shown = set(truth.gt_classes.tolist())
    for index, (title, instances) in enumerate(found.items(), 1):
        missed = find_missed(truth, instances, threshold)
        axes = panel(index, f"{title}: {len(truth) - int(missed.sum())} of {len(truth)} found")
        for box in (truth.gt_boxes.tensor[missed] * scale).tolist():
            _draw_box(axes, box, **MISSED)
        instances = instances[instances.scores >= threshold]
        boxes, labels = (instances.pred_boxes.tensor * scale).tolist(), instances.pred_classes.tolist()
        for box, label, score in sorted(zip(boxes, labels, instances.scores.tolist(), strict=True), key=lambda x: x[2]):
            _draw_box(axes, box, _colour(label))
            name = f"{class_names[label]} " if has_names else ""
            _draw_label(axes, box, _colour(label), f"{name}{100 * score:.0f}")
        shown.update(labels)

    patch = dict(ec="#8A9199", lw=0.5)
    legend = {class_names[label]: dict(fc=_colour(label), **patch) for label in sorted(shown) if not has_names}
    if len(ignored):
        legend["ignored"] = IGNORED | dict(fill=False, ec="#6B7280")
    if found:
        legend["missed"] = MISSED | dict(fill=False)
    _draw_legend(figure, legend, total)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _colour(label: int) -> str:
    return CLASS_COLOURS[label % len(CLASS_COLOURS)]


def _draw_box(axes: Axes, box: Sequence[float], ec: str, lw: float = 1.4, ls: Any = "-") -> None:
    x0, y0, x1, y1 = box
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=ec, lw=lw, ls=ls))


def _draw_label(axes: Axes, box: Sequence[float], colour: str, text: str) -> None:
    """Above the box's upper-left corner, or inside where the picture ends."""
    x, y = max(box[0], 0), box[1]
    style = dict(fontsize=6.5, color="black", clip_on=True, bbox=dict(fc=colour, ec="none", pad=0.8))
    above = y > 12
    axes.text(x + 1, y - 2 if above else max(y, 0) + 2, text, va="bottom" if above else "top", **style)


def _draw_legend(figure: Figure, entries: dict[str, dict], total: int) -> None:
    """Names beside a rectangle in their style, in the first title's line, on the right."""
    figure.legend(
        [Rectangle((0, 0), 1, 1, **style) for style in entries.values()],
        list(entries),
        loc="center right",
        bbox_to_anchor=(1, 1 - TITLE_HEIGHT / 2 / total),
        ncols=len(entries),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=1.1,
        handleheight=0.8,
        handletextpad=0.4,
        columnspacing=1.1,
        borderaxespad=0.4,
        borderpad=0,
    )


def read_metrics(path: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a `metrics.json` as Detectron2's JSONWriter leaves it: (iteration, value), in order.

    Where a resumed training wrote an iteration once more, the later value counts.

    Raises:
        UserError: no such file, or a line that is no JSON object with an `iteration`.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist: give the metrics.json that train_net.py wrote to its output folder")
    metrics: dict[str, dict[int, float]] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                values = json.loads(line)
                iteration = values.pop("iteration")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{path}, line {number}, is no JSON object with an `iteration`: remove the line"
                ) from error
            for key, value in values.items():
                metrics.setdefault(key, {})[iteration] = value
    return {key: sorted(series.items()) for key, series in metrics.items()}


def plot_curves(runs: dict[str, str], path: str, reference: tuple[str, float] | None = None) -> None:
    """Draw how trainings went: AP on the test set, the loss that they have in common, and shares of the gradient.

    The loss is the sum of those terms that all the runs have: of a plain and a distilled run, the detector's own.
    The shares are the last run's that has any; without any, there is no third panel.

    Args:
        runs: the `metrics.json` of each run, by name.
        path: of the picture.
        reference: name and AP of a model to compare with, such as the teacher.

    Raises:
        UserError: a `metrics.json` that is missing or wrong.
    """
    metrics = {name: read_metrics(file) for name, file in runs.items()}
    shares = {}
    for values in metrics.values():
        shares = {key: series for key, series in values.items() if key.startswith("gradient_share/")} or shares
    panels = 3 if shares else 2
    figure = Figure(figsize=(3.1 * panels + 1.1 * bool(shares), 2.9), dpi=150, facecolor="white", layout="constrained")
    ap_axes, loss_axes, *share_axes = figure.subplots(1, panels)
    _plot_ap(ap_axes, metrics, reference)
    _plot_loss(loss_axes, metrics)
    for axes in share_axes:
        _plot_shares(axes, shares)
    figure.savefig(path)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=8)
    axes.set_xlabel("iteration", fontsize=9.5, color=INK)
    axes.tick_params(labelsize=9.5, colors=INK, length=0)
    axes.grid(color="#E4E7EB", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#B5BCC4")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.margins(x=0.02)


def _plot_ap(axes: Axes, metrics: dict[str, dict], reference: tuple[str, float] | None) -> None:
    _style(axes, "Validation AP")
    for colour, (name, values) in zip(itertools.cycle(RUN_COLOURS), metrics.items(), strict=False):
        if series := values.get("bbox/AP"):
            iterations, ap = zip(*series, strict=True)
            label = f"{name}, {ap[-1]:.1f}"
            axes.plot(iterations, ap, color=colour, linewidth=2, marker="o", markersize=3.5, label=label)
    if reference is not None:
        name, ap = reference
        axes.axhline(ap, color="#6B7280", linewidth=1.4, linestyle=(0, (4, 3)), label=f"{name}, {ap:.1f}")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _legend(axes, loc="lower right")


def _plot_loss(axes: Axes, metrics: dict[str, dict]) -> None:
    _style(axes, "Detection loss")
    terms = set.intersection(*(set(values) for values in metrics.values()))
    terms = sorted(term for term in terms if term.startswith("loss_"))
    for colour, (name, values) in zip(itertools.cycle(RUN_COLOURS), metrics.items(), strict=False):
        sums: dict[int, float] = {}
        for term in terms:
            for iteration, value in values[term]:
                sums[iteration] = sums.get(iteration, 0.0) + value
        axes.plot(list(sums), list(sums.values()), color=colour, linewidth=1.6, label=name)
    _legend(axes, loc="upper right")


def _plot_shares(axes: Axes, shares: dict[str, list[tuple[int, float]]]) -> None:
    _style(axes, "Shares of the gradient")
    iterations = sorted({iteration for series in shares.values() for iteration, _ in series})
    names = [key.removeprefix("gradient_share/") for key in shares]
    values = [np.interp(iterations, *zip(*series, strict=True)) for series in shares.values()]
    colours = [colour for colour, _ in zip(itertools.cycle(TERM_COLOURS), names, strict=False)]
    areas = axes.stackplot(iterations, values, colors=colours, labels=names, edgecolor="white", linewidth=0.6)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.margins(x=0)
    beside = dict(loc="center left", bbox_to_anchor=(1, 0.5), borderaxespad=0.6, handlelength=1)
    axes.legend(areas[::-1], names[::-1], fontsize=9.5, labelcolor=INK, frameon=False, **beside)


def _legend(axes: Axes, **kwargs) -> None:
    if axes.lines:
        axes.legend(fontsize=9.5, labelcolor=INK, frameon=False, **kwargs)
