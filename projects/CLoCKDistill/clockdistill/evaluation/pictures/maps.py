"""Maps over an image: where a model's memory is strong and a query attends, and the masks of the memory loss."""

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from torch import Tensor

from .sheet import INK, Sheet, draw_box, draw_label

OBJECT = "#FFFFFF"
ANSWER = "#4BE37A"
STRENGTH = "inferno"
ATTENTION = "plasma"
MASK = "viridis"


class View(Protocol):
    """What is drawn of `clockdistill.modeling.observe.View`, which says what each is."""

    strength: list[Tensor]
    box: Tensor
    score: float
    points: Tensor
    weights: Tensor
    grid: tuple[int, int] | None


def draw_attention(image: np.ndarray, views: dict[str, View], box: Sequence[float], class_name: str) -> np.ndarray:
    """How models see an image and one object: a row a model; on the left the strength of the memory, on the right where
    the query attends that finds the object.

    The strength is the norm of the tokens, which `merge_levels` brings together. On the right, sampling points of
    deformable attention are dots, larger and brighter with their weight; dense attention is a heat map.

    Args:
        image: (H, W, 3) uint8 RGB.
        views: of each model, by its name.
        box: the object's, (x0, y0, x1, y1) in pixels of the image.
        class_name: the object's.
    """
    sheet = Sheet(image, len(views), 2)
    height, width = image.shape[:2]
    scale = np.array([width, height, width, height])
    for row, (title, view) in enumerate(views.items()):
        heat = overlay(sheet.image, merge_levels(view.strength, sheet.size), STRENGTH)
        axes = sheet.panel(row, 0, f"{title}: encoder memory", heat)
        draw_box(axes, box, OBJECT, ls=(0, (3, 2)))

        weights = view.weights.numpy()
        if view.grid is None:
            axes = sheet.panel(row, 1, f"{title}: query of the {class_name}", darken(sheet.image))
            draw_points(axes, view.points.numpy() * [width, height], weights)
        else:
            heat = resize(weights.reshape(view.grid), sheet.size)
            axes = sheet.panel(row, 1, f"{title}: query of the {class_name}", overlay(sheet.image, heat, ATTENTION))
        answer = view.box.numpy() * scale
        draw_box(axes, box, OBJECT, ls=(0, (3, 2)))
        draw_box(axes, answer, ANSWER)
        draw_label(axes, answer, f"{100 * view.score:.0f}", ANSWER)
    grey = dict(fill=False, ec="#6B7280", ls=(0, (3, 2)))
    sheet.legend({"the object": grey, "the query's box and score": dict(fc=ANSWER, ec=ANSWER)})
    return sheet.pixels()


def merge_levels(levels: Sequence[Tensor], size: tuple[int, int]) -> np.ndarray:
    """The mean of maps (H_l, W_l), each taken from its least to its greatest value and enlarged to `size`: (H, W)."""
    return np.mean([resize(_unit(level.numpy()), size) for level in levels], 0)


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map to (height, width), bilinearly, its cells side by side."""
    return cv2.resize(values.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)


def overlay(image: np.ndarray, values: np.ndarray, colours: str) -> np.ndarray:
    """Values (H, W), from their least to their greatest, as colours over the grey image."""
    heat = 255 * colormaps[colours](_unit(values))[..., :3]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    return (0.62 * heat + 0.38 * grey).astype(np.uint8)


def darken(image: np.ndarray) -> np.ndarray:
    return (0.55 * image).astype(np.uint8)


def draw_points(axes: Axes, points: np.ndarray, weights: np.ndarray) -> None:
    """Points (P, 2) in pixels of the image with weights (P,); those of the greatest weights are on top."""
    order = weights.argsort()
    share = weights[order] / weights.max()
    style = dict(s=2 + 34 * share, c=share, cmap=ATTENTION, vmin=0, vmax=1, linewidths=0.3, edgecolors="black")
    axes.scatter(*points[order].T, **style, zorder=2)


def draw_masks(
    image: np.ndarray,
    objects: Sequence[np.ndarray],
    background: Sequence[np.ndarray],
    boxes: Sequence[Sequence[float]],
) -> np.ndarray:
    """The masks of the memory loss, a row a level: on the left the location mask M, on the right the scale mask S.

    Args:
        image: (H, W, 3) uint8 RGB.
        objects, background: M * S and (1 - M) * S of every level, (H_l, W_l) of the part that is no padding.
        boxes: of the objects, (x0, y0, x1, y1) in pixels of the image.
    """
    sheet = Sheet(image, len(objects), 2)
    scales = [o + b for o, b in zip(objects, background, strict=True)]
    norm = LogNorm(min(s[s > 0].min() for s in scales), max(s.max() for s in scales))
    for row, (inside, scale) in enumerate(zip(objects, scales, strict=True)):
        height, width = scale.shape
        location = np.where(inside[..., None] > 0, (255, 176, 0), (30, 40, 60))
        for column, (title, colours) in enumerate(
            [
                (f"Level {row + 1}, {height} x {width} cells: location mask", location),
                ("Scale mask", 255 * colormaps[MASK](norm(scale).filled(0))[..., :3]),
            ]
        ):
            cells = cv2.resize(colours.astype(np.uint8), sheet.size[::-1], interpolation=cv2.INTER_NEAREST)
            axes = sheet.panel(row, column, title, (0.6 * cells + 0.4 * sheet.image).astype(np.uint8))
            for box in boxes:
                draw_box(axes, box, OBJECT, lw=1.0)
    _draw_scale(sheet, norm)
    return sheet.pixels()


def _draw_scale(sheet: Sheet, norm: LogNorm) -> None:
    """What the colours of the scale mask stand for, at the bottom on the right."""
    bar = np.linspace(0, 1, 200)[None]
    axes = sheet.figure.add_axes([1 - 280 / sheet.width, 8 / sheet.height, 200 / sheet.width, 10 / sheet.height])
    axes.imshow(colormaps[MASK](bar), aspect="auto")
    axes.axis("off")
    style = dict(va="center", fontsize=9, color=INK, transform=axes.transAxes)
    axes.text(-0.02, 0.5, f"weight of a cell: {norm.vmin:.2g}", ha="right", **style)
    axes.text(1.02, 0.5, f"{norm.vmax:.2g}", ha="left", **style)


def _unit(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
