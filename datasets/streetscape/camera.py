"""The pin-hole camera, and the canvas that everything is drawn on from back to front."""

from dataclasses import dataclass

import cv2
import numpy as np

NEAR = 0.4  # metres: nothing is drawn closer to the camera
SUPERSAMPLING = 3
SUBPIXEL_BITS = 4
FAR_OUT = 5000  # pixels: OpenCV's fixed-point coordinates end not far beyond


@dataclass
class Camera:
    """Pin-hole camera at `height` metres over flat ground, looking level. Pixel i covers [i, i+1)."""

    width: int
    height_px: int
    focal: float
    cx: float
    cy: float
    height: float

    def project(self, points):
        """(..., 3) camera axes -> (..., 2) pixels. A point nearer than the near plane is taken to be on it."""
        return points[..., :2] / np.maximum(points[..., 2:], NEAR) * self.focal + (self.cx, self.cy)


def fixed_point(pixels):
    """Pixels (..., 2) -> the supersampled pixels, in OpenCV's fixed point, int32."""
    scaled = (np.minimum(np.maximum(pixels, -FAR_OUT), FAR_OUT) * SUPERSAMPLING - 0.5) * (1 << SUBPIXEL_BITS)
    return np.rint(scaled).astype(np.int32)


class Canvas:
    """`pixels` (H, W, 4), uint8, supersampled: blue, green, red, and the number of the object seen there, 0 for none.

    One call of OpenCV so draws an object's colour and its mask.
    """

    def __init__(self, camera):
        self.camera = camera
        self.pixels = np.zeros((camera.height_px * SUPERSAMPLING, camera.width * SUPERSAMPLING, 4), np.uint8)
        self.begin(0)

    def begin(self, number):
        """What is drawn from now on belongs to this object."""
        self.number = number
        self._outline = []

    @property
    def extent(self):
        """(4,) left, top, right, bottom in pixels of what was drawn of the object, also beyond the image's borders."""
        outline = np.array(self._outline or np.zeros((1, 2)))
        return np.concatenate([outline.min(0), outline.max(0)])

    def polygons(self, pixels, fixed, colour):
        """Fill polygons (m, n, 2), given in pixels and in fixed point."""
        if self.number:
            self._outline += pixels.reshape(-1, 2).tolist()
        cv2.fillPoly(self.pixels, list(fixed), (*colour, self.number), cv2.LINE_8, SUBPIXEL_BITS)

    def near_polygons(self, points, colour):
        """Fill polygons (m, n, 3) of camera axes. A single one is cut at the near plane, of several the near drop."""
        points = cut(points[0])[None] if len(points) == 1 else points[points[..., 2].min(1) >= NEAR]
        if points.size:
            pixels = self.camera.project(points)
            self.polygons(pixels, fixed_point(pixels), colour)

    def capsule(self, pixels, fixed, radius, colour):
        """A line between two points with round ends, a ball where they are one; pixels, as lists."""
        if self.number:
            (ax, ay), (bx, by) = pixels
            self._outline.append((min(ax, bx) - radius, min(ay, by) - radius))
            self._outline.append((max(ax, bx) + radius, max(ay, by) + radius))
        a, b = fixed
        colour = *colour, self.number
        if a == b:
            scaled = max(1, round(radius * SUPERSAMPLING * (1 << SUBPIXEL_BITS)))
            cv2.circle(self.pixels, a, scaled, colour, -1, cv2.LINE_8, SUBPIXEL_BITS)
        else:
            thickness = max(1, round(2 * radius * SUPERSAMPLING))
            cv2.line(self.pixels, a, b, colour, thickness, cv2.LINE_8, SUBPIXEL_BITS)


def cut(polygon):
    """The part of a polygon (n, 3) beyond the near plane."""
    kept = []
    for a, b in zip(polygon, np.roll(polygon, -1, 0)):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * (NEAR - a[2]) / (b[2] - a[2]))
    return np.array(kept).reshape(-1, 3)
