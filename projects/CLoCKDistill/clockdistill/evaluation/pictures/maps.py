"""Maps drawn over an image: the norms of a model's memory, a query's attention, and the masks of the memory loss."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from torch import Tensor

from .sheet import DASHED, GRAY, INK, Sheet, draw_box, draw_label

OBJECT_COLOR = "#FFFFFF"
QUERY_COLOR = "#4BE37A"
NORM_COLORMAP = "inferno"
ATTENTION_COLORMAP = "plasma"
MASK_COLORMAP = "viridis"


class ObjectView(NamedTuple):
    """How a detector sees an image and one of its objects: its memory, and the query that predicts the object.

    Tensors are on the CPU, and coordinates in [0, 1] of the image.

    Attributes:
        memory_norms: norms of the memory's tokens, one map (H_l, W_l) per level, without padding.
        box: (4,), the query's final box, (x0, y0, x1, y1).
        score: the query's score for the object's class, in [0, 1].
        points: (P, 2), the (x, y) that the query attends to in the last decoder layer, possibly outside the image.
        weights: (P,), the attention weights of the points, with a sum of at most 1.
        grid_size: (height, width) of dense attention, whose points are the cells' centers in row-major order, or None.
    """

    memory_norms: list[Tensor]
    box: Tensor
    score: float
    points: Tensor
    weights: Tensor
    grid_size: tuple[int, int] | None


def draw_attention(
    image: np.ndarray, views: dict[str, ObjectView], box: Sequence[float], class_name: str
) -> np.ndarray:
    """Draw how models see an image and one object, with one row per model.

    The left column shows the norms of the memory, averaged over levels. The right column shows what the object's query
    attends to: the sampling points of deformable attention, larger and brighter with their weights, or a heat map of
    dense attention.

    Args:
        image: (H, W, 3) uint8 RGB.
        views: one view per model, by title.
        box: (x0, y0, x1, y1) of the object in pixels.
        class_name: the object's class.
    """
    sheet = Sheet(image, len(views), 2)
    height, width = image.shape[:2]
    scale = np.array([width, height, width, height])
    for row, (title, view) in enumerate(views.items()):
        norms = overlay(sheet.image, merge_levels(view.memory_norms, sheet.size), NORM_COLORMAP)
        axes = sheet.panel(row, 0, f"{title}: encoder memory", norms)
        draw_box(axes, box, OBJECT_COLOR, ls=DASHED)

        weights, column_title = view.weights.numpy(), f"{title}: query for the {class_name}"
        if view.grid_size is None:
            axes = sheet.panel(row, 1, column_title, (0.55 * sheet.image).astype(np.uint8))
            draw_points(axes, view.points.numpy() * [width, height], weights)
        else:
            heat = resize(weights.reshape(view.grid_size), sheet.size)
            axes = sheet.panel(row, 1, column_title, overlay(sheet.image, heat, ATTENTION_COLORMAP))
        query_box = view.box.numpy() * scale
        draw_box(axes, box, OBJECT_COLOR, ls=DASHED)
        draw_box(axes, query_box, QUERY_COLOR)
        draw_label(axes, query_box, f"{100 * view.score:.0f}", QUERY_COLOR)
    sheet.legend(
        {
            "ground truth": dict(fill=False, ec=GRAY, ls=DASHED),
            "box and score of the query": dict(fc=QUERY_COLOR, ec=QUERY_COLOR),
        }
    )
    return sheet.pixels()


def merge_levels(levels: Sequence[Tensor], size: tuple[int, int]) -> np.ndarray:
    """Average maps (H_l, W_l), each normalized to [0, 1] and resized to `size` (H, W)."""
    return np.mean([resize(_normalize(level.numpy()), size) for level in levels], 0)


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a map to (height, width), bilinearly and without aligned corners."""
    return cv2.resize(values.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)


def overlay(image: np.ndarray, values: np.ndarray, colormap: str) -> np.ndarray:
    """Blend values (H, W), normalized to [0, 1] and color-mapped, with the grayscale image."""
    heat = 255 * colormaps[colormap](_normalize(values))[..., :3]
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    return (0.62 * heat + 0.38 * gray).astype(np.uint8)


def draw_points(axes: Axes, points: np.ndarray, weights: np.ndarray) -> None:
    """Draw points (P, 2), in pixels, with weights (P,); the largest weights are on top."""
    order = weights.argsort()
    share = weights[order] / weights.max()
    style = dict(s=2 + 34 * share, c=share, cmap=ATTENTION_COLORMAP, vmin=0, vmax=1, linewidths=0.3, edgecolors="black")
    axes.scatter(*points[order].T, **style, zorder=2)


def draw_masks(
    image: np.ndarray,
    objects: Sequence[np.ndarray],
    background: Sequence[np.ndarray],
    boxes: Sequence[Sequence[float]],
) -> np.ndarray:
    """Draw the masks of the memory loss, one row per level: the location mask M, and the scale mask S.

    Args:
        image: (H, W, 3) uint8 RGB.
        objects, background: M * S and (1 - M) * S, one map (H_l, W_l) per level, without padding.
        boxes: (x0, y0, x1, y1) of the objects in pixels.
    """
    sheet = Sheet(image, len(objects), 2)
    scales = [o + b for o, b in zip(objects, background, strict=True)]
    norm = LogNorm(min(s[s > 0].min() for s in scales), max(s.max() for s in scales))
    for row, (inside, scale) in enumerate(zip(objects, scales, strict=True)):
        height, width = scale.shape
        location = np.where(inside[..., None] > 0, (255, 176, 0), (30, 40, 60))
        for column, (title, colors) in enumerate(
            [
                (f"Level {row + 1}, {height} x {width} cells: location mask", location),
                ("Scale mask", 255 * colormaps[MASK_COLORMAP](norm(scale).filled(0))[..., :3]),
            ]
        ):
            cells = cv2.resize(colors.astype(np.uint8), sheet.size[::-1], interpolation=cv2.INTER_NEAREST)
            axes = sheet.panel(row, column, title, (0.6 * cells + 0.4 * sheet.image).astype(np.uint8))
            for box in boxes:
                draw_box(axes, box, OBJECT_COLOR, lw=1.0)
    _draw_colorbar(sheet, norm)
    return sheet.pixels()


def _draw_colorbar(sheet: Sheet, norm: LogNorm) -> None:
    """Draw a color bar for the scale mask at the bottom right."""
    bar = np.linspace(0, 1, 200)[None]
    axes = sheet.figure.add_axes([1 - 280 / sheet.width, 8 / sheet.height, 200 / sheet.width, 10 / sheet.height])
    axes.imshow(colormaps[MASK_COLORMAP](bar), aspect="auto")
    axes.axis("off")
    style = dict(va="center", fontsize=9, color=INK, transform=axes.transAxes)
    axes.text(-0.02, 0.5, f"weight of a cell: {norm.vmin:.2g}", ha="right", **style)
    axes.text(1.02, 0.5, f"{norm.vmax:.2g}", ha="left", **style)


def _normalize(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
