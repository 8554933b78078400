"""The pinhole camera and the canvas."""

from dataclasses import dataclass

import cv2
import numpy as np

NEAR = 0.4  # near plane, in meters
SUPERSAMPLING = 3
SUBPIXEL_BITS = 4
MAX_PIXEL = 5000  # pixels; much larger ones would overflow OpenCV's fixed-point coordinates


@dataclass
class Camera:
    """Level pinhole camera `height` meters above flat ground. Pixel i covers [i, i + 1)."""

    width: int
    height_px: int
    focal: float
    cx: float
    cy: float
    height: float

    def project(self, points):
        """Points (..., 3) in camera axes -> pixels (..., 2). Depths are clamped to the near plane."""
        return points[..., :2] / np.maximum(points[..., 2:], NEAR) * self.focal + (self.cx, self.cy)


def fixed_point(pixels):
    """Pixels (..., 2) -> supersampled pixels in OpenCV's fixed-point format, int32."""
    scaled = np.minimum(np.maximum(pixels, -MAX_PIXEL), MAX_PIXEL) * SUPERSAMPLING - 0.5
    return np.rint(scaled * (1 << SUBPIXEL_BITS)).astype(np.int32)


class Canvas:
    """Supersampled `pixels` (H, W, 4), uint8: blue, green, red, and the ID of the visible object, 0 for none.

    A single OpenCV call thus draws an object's color and its mask.
    """

    def __init__(self, camera):
        self.camera = camera
        self.pixels = np.zeros((camera.height_px * SUPERSAMPLING, camera.width * SUPERSAMPLING, 4), np.uint8)
        self.begin(0)

    def begin(self, object_id):
        """Assign everything drawn from now on to this object."""
        self.object_id = object_id
        self._outline = []

    @property
    def extent(self):
        """(4,) left, top, right, bottom of the object in pixels, not clipped to the image."""
        outline = np.array(self._outline or np.zeros((1, 2)))
        return np.concatenate([outline.min(0), outline.max(0)])

    def polygons(self, pixels, fixed, color):
        """Fill polygons (m, n, 2), given in pixels and in fixed point."""
        if self.object_id:
            self._outline += pixels.reshape(-1, 2).tolist()
        cv2.fillPoly(self.pixels, list(fixed), (*color, self.object_id), cv2.LINE_8, SUBPIXEL_BITS)

    def near_polygons(self, points, color):
        """Fill polygons (m, n, 3) in camera axes: a single one clipped at the near plane, several only if beyond it."""
        points = clip_near(points[0])[None] if len(points) == 1 else points[points[..., 2].min(1) >= NEAR]
        if points.size:
            pixels = self.camera.project(points)
            self.polygons(pixels, fixed_point(pixels), color)

    def capsule(self, pixels, fixed, radius, color):
        """Draw a thick line with round ends, or a disc if both ends coincide. `pixels` and `fixed` are lists."""
        if self.object_id:
            (ax, ay), (bx, by) = pixels
            self._outline.append((min(ax, bx) - radius, min(ay, by) - radius))
            self._outline.append((max(ax, bx) + radius, max(ay, by) + radius))
        a, b = fixed
        color = *color, self.object_id
        if a == b:
            scaled = max(1, round(radius * SUPERSAMPLING * (1 << SUBPIXEL_BITS)))
            cv2.circle(self.pixels, a, scaled, color, -1, cv2.LINE_8, SUBPIXEL_BITS)
        else:
            thickness = max(1, round(2 * radius * SUPERSAMPLING))
            cv2.line(self.pixels, a, b, color, thickness, cv2.LINE_8, SUBPIXEL_BITS)


def clip_near(polygon):
    """Return the part of a polygon (n, 3) beyond the near plane."""
    kept = []
    for a, b in zip(polygon, np.roll(polygon, -1, 0)):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * (NEAR - a[2]) / (b[2] - a[2]))
    return np.array(kept).reshape(-1, 3)
