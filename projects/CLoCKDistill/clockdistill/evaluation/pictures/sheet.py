"""Sheets of panels that each show an image, with titles, boxes and a legend."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...errors import UserError

# bright and mostly safe for color-blind readers (after Okabe and Ito); red is reserved for errors
CLASS_COLORS = ("#56C8FF", "#FFB000", "#4BE37A", "#FF8AD8", "#FFF25C", "#B79BFF", "#2FE0C8", "#FFFFFF")
ERROR_COLOR = "#FF3B30"
INK = "#24292F"
GRAY = "#6B7280"
DASHED = (0, (3, 2))
WIDTHS = (960, 640)  # approximate width of a panel in pixels, in sheets of one column and of several
TITLE_HEIGHT = 26  # pixels
GAP = 8  # pixels between the panels of a row
DPI = 100


class Sheet:
    """A grid of panels that show the same image, each with a title above.

    Small images are enlarged by an integer factor. With several columns, large images are reduced.

    Args:
        image: (H, W, 3) uint8 RGB.

    Attributes:
        scale: pixels of a panel per pixel of the image.
        size: (height, width) of a panel in pixels.
    """

    def __init__(self, image: np.ndarray, rows: int = 1, columns: int = 1, title_height: int = TITLE_HEIGHT):
        width = WIDTHS[columns > 1]
        self.scale = float(max(1, round(width / image.shape[1])))
        if columns > 1 and image.shape[1] > 1.5 * width:
            self.scale = width / image.shape[1]
        interpolation = cv2.INTER_CUBIC if self.scale >= 1 else cv2.INTER_AREA
        self.image = cv2.resize(image, None, fx=self.scale, fy=self.scale, interpolation=interpolation)
        self.size = self.image.shape[:2]
        self.title_height = title_height
        # with several columns the legend goes below, because the titles take its place
        self.footer = TITLE_HEIGHT if columns > 1 else 0
        self.height = rows * (self.size[0] + title_height) + self.footer
        self.width = columns * (self.size[1] + GAP) - GAP
        # matplotlib rounds sizes in pixels down
        size = (self.width + 0.01) / DPI, (self.height + 0.01) / DPI
        self.figure = Figure(figsize=size, dpi=DPI, facecolor="white")

    def panel(self, row: int, column: int, title: str = "", image: np.ndarray | None = None) -> Axes:
        """Add a panel and return its axes, whose units are pixels of the original image.

        Args:
            image: (height, width, 3) of the panel's size, drawn in place of the sheet's image.
        """
        height, width = self.size
        left, top = column * (width + GAP), row * (height + self.title_height)
        bottom = self.height - top - self.title_height - height
        axes = self.figure.add_axes([left / self.width, bottom / self.height, width / self.width, height / self.height])
        extent = (0, width / self.scale, height / self.scale, 0)
        image = self.image if image is None else image
        axes.imshow(image, extent=extent, interpolation="none", aspect="auto")
        axes.set(xlim=extent[:2], ylim=extent[2:], autoscale_on=False)
        axes.axis("off")
        if title:
            style = dict(va="center_baseline", fontsize=10.5, fontweight="bold", color=INK)
            self.figure.text((left + 8) / self.width, 1 - (top + self.title_height / 2) / self.height, title, **style)
        return axes

    def legend(self, entries: dict[str, dict[str, Any]]) -> None:
        """Add a legend of rectangles, at the right of the first title, or below the panels with several columns.

        Args:
            entries: by name, the keyword arguments of the `Rectangle`.
        """
        middle = self.footer / 2 if self.footer else self.height - self.title_height / 2
        self.figure.legend(
            [Rectangle((0, 0), 1, 1, **style) for style in entries.values()],
            list(entries),
            loc="center right",
            bbox_to_anchor=(1, middle / self.height),
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

    def pixels(self) -> np.ndarray:
        """Render the sheet as (height, width, 3) uint8 RGB."""
        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def class_color(label: int) -> str:
    return CLASS_COLORS[label % len(CLASS_COLORS)]


def draw_box(axes: Axes, box: Sequence[float], ec: str, lw: float = 1.4, ls: Any = "-", **style: Any) -> None:
    """Draw the outline of a box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = box
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=ec, lw=lw, ls=ls, **style))


def draw_label(axes: Axes, box: Sequence[float], text: str, fc: str, color: str = "black") -> None:
    """Draw a label above the box's upper-left corner, or inside the box at the top of the image."""
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    pixel = right / axes.bbox.width
    x, y = min(max(box[0], 0), right), min(max(box[1], 0), bottom)
    above = y > 12 * pixel
    # near the right edge, align the label with it
    left = right - x > 7 * pixel * len(text)
    place = dict(xy=(x if left else right, y), xytext=(1 if left else -1, 1.5 if above else -1.5))
    align = dict(ha="left" if left else "right", va="bottom" if above else "top", textcoords="offset points")
    box_style = dict(fc=fc, ec="none", pad=0.8)
    axes.annotate(text, **place, **align, fontsize=6.5, color=color, annotation_clip=False, bbox=box_style)


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a (height, width, 3) uint8 RGB picture.

    Raises:
        UserError: the file cannot be written.
    """
    if not cv2.imwrite(str(path), picture[:, :, ::-1]):
        raise UserError(f"cannot write {path}: check that its folder exists, is writable and has free space")
