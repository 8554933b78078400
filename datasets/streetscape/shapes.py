"""The primitives of all models: solids with painted faces, and limbs."""

from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from .colors import gray


class Layer(NamedTuple):
    """Polygons of one color on a face."""

    polygons: np.ndarray  # (m, n, 3)
    color: np.ndarray
    glow: float = 0.0  # radius of the halo in the dark, in meters; 0 for no light


class Limb(NamedTuple):
    """A cylinder with round ends, or a ball if they coincide."""

    p: np.ndarray
    q: np.ndarray
    radius: float
    color: np.ndarray


def limb(p, q, radius, color):
    return Limb(np.array(p, float), np.array(q, float), radius, color)


def rectangle(left, right, low, high):
    return [(left, low), (right, low), (right, high), (left, high)]


@lru_cache
def unit_circle(count):
    angle = np.arange(count) * 2 * np.pi / count
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def disc(l, h, radius, count=14):
    """Return a circle as a polygon (count, 2) in (l, h)."""
    return unit_circle(count) * radius + (l, h)


class Solid:
    """A convex body: a profile in (l, h), extruded sideways by `half_width`, a number or a function of h.

    Its faces are the two sides, then one per edge of the profile. A face is a list of layers: the face itself, then
    everything painted on it.
    """

    def __init__(self, profile, half_width, color):
        self.half_width = half_width if callable(half_width) else lambda h: half_width
        self.profile = np.array(profile, float)
        right, left = (self._lift(self.profile, sign) for sign in (-1, 1))
        self.sides = [[Layer(side[None], color)] for side in (right, left)]
        after = [*range(1, len(right)), 0]
        quads = np.stack([right, right[after], left[after], left], 1)
        self.edges = [[Layer(quads[i : i + 1], color)] for i in range(len(quads))]
        self.faces = self.sides + self.edges

    def _lift(self, flat, sign):
        lifted = np.empty((*flat.shape[:-1], 3))
        lifted[..., :2] = flat
        lifted[..., 2] = sign * (self.half_width(flat[..., 1]) + 0.004)
        return lifted

    def on_sides(self, flat, color, glow=0.0):
        """Paint polygons (n, 2) or (m, n, 2) in (l, h) on both sides."""
        flat = np.array(flat, float, ndmin=3)
        for sign, side in zip((-1, 1), self.sides):
            side.append(Layer(self._lift(flat, sign), color, glow))

    def on_edge(self, edge, u, v, color, glow=0.0):
        """Paint a rectangle on an edge's face: u in [-1, 1] sideways, v in [0, 1] from the edge's start to its end."""
        shares = [((1 - y) * (1 - x), y * (1 - x), y * (1 + x), (1 - y) * (1 + x)) for x, y in rectangle(*u, *v)]
        corners = np.array(shares) / 2 @ self.edges[edge][0].polygons[0]
        self.edges[edge].append(Layer(corners[None], color, glow))


def cuboid(length, height, width, color, base=0.0, middle=0.0):
    """Return a box; its edges are 0 bottom, 1 front, 2 top, 3 back."""
    back, front = middle - length / 2, middle + length / 2
    return Solid(rectangle(back, front, base, base + height), width / 2, color)


class Model:
    """Solids and limbs, centered above the origin.

    All points are kept in two arrays, so that a single operation moves or projects them.

    Attributes:
        size: l, h, w.
        points: (n, 3), the solids' polygons in the order of `layers`: all faces, then everything painted on them.
        ends: (n, 2, 3), the ends of the limbs.
    """

    def __init__(self, solids=(), limbs=()):
        faces = [face for solid in solids for face in solid.faces]
        self.face_counts = [len(solid.faces) for solid in solids]
        self.layers = [face[0] for face in faces] + [layer for face in faces for layer in face[1:]]
        self.face_of = [*range(len(faces)), *(i for i, face in enumerate(faces) for _ in face[1:])]
        self.layers_of = [[] for _ in faces]
        for i, face in enumerate(self.face_of):
            self.layers_of[face].append(i)
        flat = [layer.polygons.reshape(-1, 3) for layer in self.layers]
        self.starts = [0, *accumulate(map(len, flat))]
        self.points = np.concatenate(flat) if flat else np.empty((0, 3))
        self.ends = np.array([(limb.p, limb.q) for limb in limbs]).reshape(-1, 2, 3)
        self.radii = np.array([limb.radius for limb in limbs])
        self.limb_colors = np.array([limb.color for limb in limbs])

        radii = self.radii[:, None, None]
        balls = np.concatenate([self.ends - radii, self.ends + radii])
        extent = np.concatenate([self.points, balls.reshape(-1, 3)])
        low, high = extent.min(0), extent.max(0)
        self.size = high - [low[0], 0, low[2]]
        middle = np.array([(low[0] + high[0]) / 2, 0, (low[2] + high[2]) / 2])
        self.points -= middle
        self.ends -= middle


def add_wheels(solid, places, radius, rng):
    tire, rim = gray(rng.uniform(18, 34)), gray(rng.uniform(60, 190))
    for l in places:
        solid.on_sides(disc(l, radius * 1.02, radius * 1.16), tire * 0.6)
        solid.on_sides(disc(l, radius, radius), tire)
        solid.on_sides(disc(l, radius, radius * 0.6), rim)
        solid.on_sides(disc(l, radius, radius * 0.22), tire * 1.6)
