"""Draws street scenes with the labels of KITTI's 2D object benchmark.

A pin-hole camera looks along a street with objects of real sizes at real distances. Everything is drawn with OpenCV
from back to front, at three times the size, so that the share of each object that is seen is known, not guessed.

Axes. Camera: x right, y down, z ahead, metres (KITTI's). Object: l ahead, h up, w to the side, origin on the ground
under its middle. Road: s along, t to the right, origin on the road's middle line beside the camera.
"""

import numpy as np

from .labels import label_lines
from .painting import paint_scene, photograph
from .scene import compose

VERSION = 3  # of the pictures: raise it whenever the same seed draws something else


def draw_scene(seed, index, size):
    """Scene number `index` at `size` (width, height): the picture (H, W, 3), uint8 BGR; its label lines; its camera."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    scene = compose(rng, *size)
    canvas, things, halos = paint_scene(scene, rng)
    return photograph(canvas, halos, rng), label_lines(things, canvas), scene.camera
