"""Synthetic street scenes with labels in the format of KITTI's 2D object benchmark.

A pinhole camera looks along a street in which objects have realistic sizes and positions. OpenCV draws everything back
to front at three times the final resolution, so the visible share of every object is counted exactly.

Coordinate systems:
    Camera (KITTI's): x right, y down, z forward, in meters.
    Object: l forward, h up, w sideways; the origin lies on the ground below the object's center.
    Road: s along it, t to the right; the origin lies on the center line, level with the camera.
"""

import numpy as np

from .labels import label_lines
from .painting import paint_scene, photograph
from .scene import compose

VERSION = 3  # of the pictures: increment it whenever a seed yields different ones


def draw_scene(seed, index, size):
    """Draw scene number `index` at `size` (width, height).

    Returns:
        The picture (H, W, 3), uint8 BGR; the lines of its label file; its camera.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    scene = compose(rng, *size)
    canvas, objects, halos = paint_scene(scene, rng)
    return photograph(canvas, halos, rng), label_lines(objects, canvas), scene.camera
