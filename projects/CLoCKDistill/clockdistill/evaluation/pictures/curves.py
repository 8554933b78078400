"""Training curves and precision-recall curves."""

import itertools
import json
import os
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from pycocotools.cocoeval import COCOeval

from ...errors import UserError
from .sheet import INK

RUN_COLORS = ("#3B6FB6", "#D9541E", "#2E8B57", "#8E5AA8", "#B8860B")
TERM_COLORS = ("#C9CED6", "#F7C59F", "#F08A4B", "#D9541E", "#9CC3E6", "#3B6FB6", "#8E5AA8")
MAX_PANELS = 12
# `SetCriterion`'s terms: of the last layer, of denoising queries or the encoder's proposals, of an auxiliary layer
DETECTION_LOSS = re.compile(r"loss_(class|bbox|giou)(_dn|_enc)?(_\d+)?")


def read_metrics(path: str) -> dict[str, list[tuple[int, float]]]:
    """Read the `metrics.json` of Detectron2's JSONWriter: (iteration, value) of each metric, sorted.

    The last value counts if a resumed training repeated an iteration.

    Raises:
        UserError: if there is no such file, or a line is not a JSON object with an `iteration`.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist: use the metrics.json in the output folder of train_net.py")
    metrics: dict[str, dict[int, float]] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                values = json.loads(line)
                iteration = values.pop("iteration")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{path}, line {number}, is not a JSON object with an `iteration`: remove the line"
                ) from error
            for key, value in values.items():
                metrics.setdefault(key, {})[iteration] = value
    return {key: sorted(series.items()) for key, series in metrics.items()}


def plot_curves(runs: dict[str, str], path: str, reference: tuple[str, float] | None = None) -> None:
    """Plot training runs: AP on the test set, the detection loss, and each loss's share of the gradient.

    The detection loss is the sum of the detector's own terms that all runs have in common; distillation losses are left
    out. The gradient shares are those of the last run that logged any; without any, this panel is left out.

    Args:
        runs: paths of `metrics.json`, by the run's name.
        path: output file.
        reference: name and AP of a model to compare with, such as the teacher.

    Raises:
        UserError: if a `metrics.json` is missing or invalid.
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


def plot_precision_recall(
    evaluations: dict[str, COCOeval], class_names: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Plot precision over recall at an IoU of 0.5: the mean over classes, and each class if there are few enough.

    Args:
        evaluations: results of `evaluate_coco`, by the model's name.
        class_names: by class id; classes without objects are left out.
        path: output file.
    """
    curves = {name: precision_by_class(evaluation) for name, evaluation in evaluations.items()}
    classes = sorted(set.union(*(set(by_class) for by_class in curves.values())))
    shown = classes if 1 < len(classes) < MAX_PANELS else []
    columns = min(1 + len(shown), 4)
    rows = -(-(1 + len(shown)) // columns)
    figure = Figure(figsize=(3.1 * max(columns, 1.4), 2.9 * rows), dpi=150, facecolor="white", layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, label in itertools.zip_longest(panels, [None, *shown], fillvalue=-1):
        if label == -1:
            axes.axis("off")
            continue
        _style(axes, "All classes" if label is None else class_names[label], "recall")
        for color, (name, by_class) in zip(itertools.cycle(RUN_COLORS), curves.items(), strict=False):
            chosen = list(by_class.values()) if label is None else [by_class[label]] if label in by_class else []
            if chosen:
                precision = np.mean(chosen, 0)
                legend = f"{name}, {100 * precision.mean():.1f}" if label is None else f"{100 * precision.mean():.1f}"
                recall = evaluations[name].params.recThrs
                axes.plot(recall, precision, color=color, linewidth=1.8, label=legend)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
        axes.set_ylabel("precision", fontsize=9.5, color=INK)
        _legend(axes, loc="best", title="AP50", title_fontsize=9.5, handlelength=1)
    figure.savefig(path)


def precision_by_class(evaluation: COCOeval) -> dict[int, np.ndarray]:
    """Interpolated precision (R,) at each of `evaluation.params.recThrs`, by class, for classes with objects."""
    by_class = evaluation.eval["precision"][0, :, :, 0, 0].T
    labels = evaluation.params.catIds
    return {int(label): curve for label, curve in zip(labels, by_class, strict=True) if (curve >= 0).all()}


def _style(axes: Axes, title: str, unit: str = "iteration") -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=8)
    axes.set_xlabel(unit, fontsize=9.5, color=INK)
    axes.tick_params(labelsize=9.5, colors=INK, length=0)
    axes.grid(color="#E4E7EB", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#B5BCC4")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=unit == "iteration"))
    axes.margins(x=0.02)


def _plot_ap(axes: Axes, metrics: dict[str, dict], reference: tuple[str, float] | None) -> None:
    _style(axes, "Validation AP")
    for color, (name, values) in zip(itertools.cycle(RUN_COLORS), metrics.items(), strict=False):
        if series := values.get("bbox/AP"):
            iterations, ap = zip(*series, strict=True)
            label = f"{name}, {ap[-1]:.1f}"
            axes.plot(iterations, ap, color=color, linewidth=2, marker="o", markersize=3.5, label=label)
    if reference is not None:
        name, ap = reference
        axes.axhline(ap, color="#6B7280", linewidth=1.4, linestyle=(0, (4, 3)), label=f"{name}, {ap:.1f}")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _legend(axes, loc="best")


def _plot_loss(axes: Axes, metrics: dict[str, dict]) -> None:
    _style(axes, "Detection loss")
    common = set.intersection(*(set(values) for values in metrics.values()))
    terms = sorted(filter(DETECTION_LOSS.fullmatch, common))
    for color, (name, values) in zip(itertools.cycle(RUN_COLORS), metrics.items(), strict=False):
        sums: dict[int, float] = {}
        for term in terms:
            for iteration, value in values[term]:
                sums[iteration] = sums.get(iteration, 0.0) + value
        axes.plot(list(sums), list(sums.values()), color=color, linewidth=1.6, label=name)
    _legend(axes, loc="upper right")


def _plot_shares(axes: Axes, shares: dict[str, list[tuple[int, float]]]) -> None:
    _style(axes, "Gradient shares")
    iterations = sorted({iteration for series in shares.values() for iteration, _ in series})
    names = [key.removeprefix("gradient_share/") for key in shares]
    values = [np.interp(iterations, *zip(*series, strict=True)) for series in shares.values()]
    colors = [color for color, _ in zip(itertools.cycle(TERM_COLORS), names, strict=False)]
    areas = axes.stackplot(iterations, values, colors=colors, labels=names, edgecolor="white", linewidth=0.6)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.margins(x=0)
    outside = dict(loc="center left", bbox_to_anchor=(1, 0.5), borderaxespad=0.6, handlelength=1)
    axes.legend(areas[::-1], names[::-1], fontsize=9.5, labelcolor=INK, frameon=False, **outside)


def _legend(axes: Axes, **kwargs) -> None:
    if axes.lines:
        axes.legend(fontsize=9.5, labelcolor=INK, frameon=False, **kwargs)
