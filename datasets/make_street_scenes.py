#!/usr/bin/env python3
"""Draws a data set of street scenes in the layout of KITTI's 2D object benchmark.

A pin-hole camera looks along a street with objects of real sizes at real distances. Everything is drawn with OpenCV
from back to front, at three times the size, so that the share of each object that is seen is known, not guessed.

    python datasets/make_street_scenes.py                    # 800 + 200 images in $DETECTRON2_DATASETS/street_scenes
    python datasets/make_street_scenes.py --root my/scenes --train 80 --val 20 --seed 1

Each image depends on the seed and its number alone: neither the number of jobs nor of images changes it.

Axes. Camera: x right, y down, z ahead, metres (KITTI's). Object: l ahead, h up, w to the side, origin on the ground
under its middle. Road: s along, t to the right, origin on the road's middle line beside the camera.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

VERSION = 3  # of the pictures: raise it whenever the same arguments draw something else
MANIFEST = "street_scenes.json"
SUPERSAMPLING = 3
SUBPIXEL_BITS = 4
NEAR = 0.4  # metres: nothing is drawn closer to the camera
FOCAL = 721.5 / 1242  # of KITTI's cameras, in image widths
BASELINE = 0.54  # metres between KITTI's left and right camera

MIN_HEIGHT, MIN_PIXELS, MIN_VISIBLE = 14.0, 40.0, 0.3  # an object that shows less than this is a DontCare region
OCCLUSION_LEVELS = (0.9, 0.55, 0.25)  # at least this share visible: level 0, 1, 2; less: 3

CAR_PAINTS = """f2f2f0 f2f2f0 c9ccd0 a9adb3 8a8f96 5c6066 3a3d42 1d1f22 1d1f22 7d1f22 b3262b 23406e 2d63a8 6f8fae 2f4a3a
56634a 8b7a5e b9a98a d9c9a0 c7832f 5a2e2a e0c62f""".split()
CLOTHES = "1c1d22 2a2f3d 3b4a63 5c6b7a 7a2d2f a83a32 3f5a3c 6b7a4a 8a6a4a b8a88a d8d4c8 e8e6e0 c9a02f 4a2f4f".split()
TROUSERS = "1c1d22 23283a 2f3c58 3d3a38 5a5448 7a7264 8f8a80 403028".split()
SKINS = "f0c8a8 d8a888 b07f5c 7d5238 4f3424".split()
WALLS = "c8b8a0 d8d0c0 b09880 a8624a 8f5240 c0a070 9aa0a4 b8bcc0 e0d8c8 7a7068 d0b090 a8b0a0 6a5a50 c89878".split()
LEAVES = "3f5a2a 4f6a30 5f7a3a 35502c 6a7a40 486038 7a7038".split()


def bgr(code):
    """'rrggbb' -> float array (3,) in OpenCV's channel order, 0 to 255."""
    return np.array([int(code[i : i + 2], 16) for i in (4, 2, 0)], np.float32)


def cross(a, b):
    """Of two vectors (3,); NumPy's takes ten times as long for a single pair."""
    (a0, a1, a2), (b0, b1, b2) = a.tolist(), b.tolist()
    return np.array([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0])


def pick(rng, codes, jitter=0.12):
    """One of the colours, made a little lighter, darker and of another tint."""
    return np.clip(bgr(rng.choice(codes)) * rng.uniform(1 - jitter, 1 + jitter) + rng.normal(0, 5, 3), 4, 250)


# ---------------------------------------------------------------------------------------------- light and camera


@dataclass
class Light:
    """Colours are BGR. `haze` is the distance in metres at which 63% of a colour is lost to the air."""

    zenith: np.ndarray
    horizon: np.ndarray
    ambient: np.ndarray
    sun: np.ndarray
    direction: np.ndarray  # unit vector towards the sun, camera axes
    haze: float
    clouds: float
    dark: bool  # lamps and windows are lit

    def shade(self, albedo, normal, distance, shadow=1.0):
        """Colour of a matt surface at that distance. `shadow`: the share of the direct sun that reaches it."""
        direct = max(0.0, float(normal @ self.direction)) * shadow
        # a surface that looks up sees the whole sky, an upright one half of it
        sky = 0.85 - 0.15 * float(normal[1])
        return self.veil(albedo * (self.ambient * sky + self.sun * direct), distance)

    def veil(self, colour, distance):
        seen = np.exp(-distance / self.haze)
        return colour * seen + self.horizon * (1 - seen)


def make_light(rng):
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.35, 1.1)
    kind = rng.choice(["sunny", "hazy", "overcast", "dusk", "night"], p=[0.34, 0.14, 0.24, 0.16, 0.12])
    if kind == "sunny":
        values = (
            bgr("5f93d0"),
            bgr("cfdfec"),
            (0.56, 0.52, 0.48),
            (0.46, 0.54, 0.58),
            rng.uniform(150, 400),
            0.7,
            False,
        )
    elif kind == "hazy":
        values = (bgr("b8c0c8"), bgr("d4d6d6"), (0.66, 0.66, 0.66), (0.15, 0.16, 0.17), rng.uniform(28, 60), 0.2, False)
    elif kind == "overcast":
        values = (
            bgr("98a0aa"),
            bgr("cdd0d2"),
            (0.70, 0.68, 0.66),
            (0.08, 0.08, 0.08),
            rng.uniform(90, 250),
            1.0,
            False,
        )
    elif kind == "dusk":
        elevation = rng.uniform(0.1, 0.25)
        values = (bgr("4a5a86"), bgr("e8b088"), (0.42, 0.36, 0.34), (0.20, 0.34, 0.48), rng.uniform(70, 200), 0.9, True)
    else:
        values = (bgr("141a2c"), bgr("3a4058"), (0.25, 0.21, 0.20), (0.05, 0.08, 0.10), rng.uniform(60, 140), 0.3, True)
    zenith, horizon, ambient, sun, haze, clouds, dark = values
    direction = np.array([np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    gain = rng.uniform(0.82, 1.18)
    return Light(zenith, horizon, np.array(ambient) * gain, np.array(sun) * gain, direction, haze, clouds, dark)


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
        """(..., 3) camera axes -> (..., 2) pixels."""
        return points[..., :2] / points[..., 2:] * self.focal + (self.cx, self.cy)


class Canvas:
    """Picture and, for each of its (supersampled) pixels, the number of the object that it shows; 0 is no object."""

    def __init__(self, camera):
        self.camera = camera
        shape = camera.height_px * SUPERSAMPLING, camera.width * SUPERSAMPLING
        self.image = np.zeros((*shape, 3), np.uint8)
        self.ids = np.zeros(shape, np.uint8)
        self.begin(0)

    def begin(self, number):
        """What is drawn from now on belongs to this object; `low` and `high` become its extent in pixels."""
        self.number = number
        self.low, self.high = np.full(2, np.inf), np.full(2, -np.inf)

    def _grow(self, low, high):
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)

    @staticmethod
    def _fixed(pixels):
        return np.rint((pixels * SUPERSAMPLING - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32)

    def polygons(self, points, colour):
        """Fill (m, n, 3) polygons of camera axes. A single one is cut at the near plane, of several the near drop."""
        near = points[..., 2].min(1) < NEAR
        if near.any():
            if len(points) > 1 or (points[..., 2] < NEAR).all():
                points = points[~near]
            else:
                points = cut(points[0])[None]
            if not points.size:
                return
        pixels = self.camera.project(points)
        self._grow(pixels.min((0, 1)), pixels.max((0, 1)))
        contours = list(self._fixed(np.clip(pixels, -5000, 5000)))
        cv2.fillPoly(self.image, contours, colour.tolist(), cv2.LINE_8, SUBPIXEL_BITS)
        cv2.fillPoly(self.ids, contours, self.number, cv2.LINE_8, SUBPIXEL_BITS)

    def capsule(self, p, q, radius, colour):
        """A line between two points of camera axes with round ends; a ball where they are one."""
        if min(p[2], q[2]) < NEAR:
            return
        ends = self.camera.project(np.stack([p, q]))
        radius = radius * self.camera.focal / (p[2] + q[2]) * 2
        self._grow(ends.min(0) - radius, ends.max(0) + radius)
        a, b = self._fixed(np.clip(ends, -5000, 5000)).tolist()
        for target, value in ((self.image, colour.tolist()), (self.ids, self.number)):
            if a == b:
                scaled = max(1, round(radius * SUPERSAMPLING * (1 << SUBPIXEL_BITS)))
                cv2.circle(target, a, scaled, value, -1, cv2.LINE_8, SUBPIXEL_BITS)
            else:
                cv2.line(target, a, b, value, max(1, round(2 * radius * SUPERSAMPLING)), cv2.LINE_8, SUBPIXEL_BITS)


def cut(polygon):
    """The part of a polygon (n, 3) beyond the near plane."""
    kept = []
    for a, b in zip(polygon, np.roll(polygon, -1, 0)):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * (NEAR - a[2]) / (b[2] - a[2]))
    return np.array(kept).reshape(-1, 3)


# ---------------------------------------------------------------------------------------------- models


class Decor(NamedTuple):
    polygons: np.ndarray  # (m, n, 3)
    colour: np.ndarray
    glow: float  # metres of halo in the dark, 0 for what does not shine


class Face(NamedTuple):
    points: np.ndarray  # (n, 3)
    colour: np.ndarray
    decor: list


class Limb(NamedTuple):
    p: np.ndarray
    q: np.ndarray
    radius: float
    colour: np.ndarray


class Solid:
    """A convex body: a profile in (l, h), as wide as `half_width(h)` says. Faces: both sides, then one per edge."""

    def __init__(self, profile, half_width, colour):
        self.half_width = half_width if callable(half_width) else lambda h: half_width + 0.0 * h
        self.profile = np.array(profile, float)
        self.sides = [Face(self._lift(self.profile, sign), colour, []) for sign in (-1, 1)]
        right, left = (side.points for side in self.sides)
        after = [*range(1, len(right)), 0]
        self.edges = [Face(np.stack([right[i], right[j], left[j], left[i]]), colour, []) for i, j in enumerate(after)]
        self.faces = self.sides + self.edges

    def _lift(self, flat, sign):
        return np.concatenate([flat, sign * (self.half_width(flat[..., 1:]) + 0.004)], -1)

    def on_sides(self, flat, colour, glow=0.0, sign=None):
        """Paint polygons (n, 2) or (m, n, 2), in (l, h), on both sides or one."""
        flat = np.array(flat, float)
        flat = flat if flat.ndim == 3 else flat[None]
        for one, side in zip((-1, 1), self.sides):
            if sign in (None, one):
                side.decor.append(Decor(self._lift(flat, one), colour, glow))

    def on_edge(self, edge, u, v, colour, glow=0.0):
        """Paint a rectangle on the face of an edge: u in -1..1 across, v in 0..1 from its first to its second end."""
        places = [(u[0], v[0]), (u[1], v[0]), (u[1], v[1]), (u[0], v[1])]
        shares = [((1 - y) * (1 - x), y * (1 - x), y * (1 + x), (1 - y) * (1 + x)) for x, y in places]
        corners = np.array(shares) / 2 @ self.edges[edge].points
        self.edges[edge].decor.append(Decor(corners[None], colour, glow))


def cuboid(length, height, width, colour, base=0.0, middle=0.0):
    """A box; its edge faces are 0 bottom, 1 front, 2 top, 3 back."""
    back, front = middle - length / 2, middle + length / 2
    return Solid([(back, base), (front, base), (front, base + height), (back, base + height)], width / 2, colour)


class Model:
    """Solids and limbs, moved so that the middle of their extent lies over the origin. `size`: its l, h, w."""

    def __init__(self, solids=(), limbs=()):
        corners = [face.points for solid in solids for face in solid.faces]
        corners += [part.polygons.reshape(-1, 3) for solid in solids for face in solid.faces for part in face.decor]
        for limb in limbs:
            ends = np.stack([limb.p, limb.q])
            corners += [ends - limb.radius, ends + limb.radius]
        corners = np.concatenate(corners)
        low, high = corners.min(0), corners.max(0)
        self.size = high - [low[0], 0, low[2]]
        shift = np.array([(low[0] + high[0]) / 2, 0, (low[2] + high[2]) / 2])
        self.solids = [
            [
                Face(face.points - shift, face.colour, [d._replace(polygons=d.polygons - shift) for d in face.decor])
                for face in solid.faces
            ]
            for solid in solids
        ]
        self.limbs = [limb._replace(p=limb.p - shift, q=limb.q - shift) for limb in limbs]


def disc(l, h, radius, count=14):
    angle = np.arange(count) * 2 * np.pi / count
    return np.stack([l + radius * np.cos(angle), h + radius * np.sin(angle)], -1)


def add_wheels(solid, places, radius, rng):
    tyre, rim = np.full(3, rng.uniform(18, 34)), np.full(3, rng.uniform(60, 190))
    for l in places:
        solid.on_sides(disc(l, radius * 1.02, radius * 1.16), tyre * 0.6)
        solid.on_sides(disc(l, radius, radius), tyre)
        solid.on_sides(disc(l, radius, radius * 0.6), rim)
        solid.on_sides(disc(l, radius, radius * 0.22), tyre * 1.6)


def add_lamps(solid, front, back, low, high, lit_front, lit_back):
    """Head and tail lamps at the outer ends of two edge faces."""
    white = np.array([225.0, 240, 250]) if lit_front else np.array([190.0, 195, 195])
    red = np.array([40.0, 30, 235]) if lit_back else np.array([38.0, 30, 150])
    for sign in (-1, 1):
        solid.on_edge(front, (sign * 0.62, sign * 0.94), (low, high), white, 0.55 * lit_front)
        solid.on_edge(back, (sign * 0.70, sign * 0.97), (1 - high, 1 - low), red, 0.35 * lit_back)


def make_car(rng, light, paint=None, van=False):
    """Cars from hatchback to off-roader, and vans: a lower body with a bonnet, and an upper one with the windows."""
    paint = pick(rng, CAR_PAINTS) if paint is None else paint
    if van:
        style = rng.choice(["people", "delivery", "high"])
        length, height, width = {
            "people": (rng.uniform(4.3, 5.1), rng.uniform(1.75, 2.0), rng.uniform(1.78, 1.95)),
            "delivery": (rng.uniform(4.2, 5.3), rng.uniform(1.85, 2.2), rng.uniform(1.8, 2.0)),
            "high": (rng.uniform(5.2, 6.4), rng.uniform(2.35, 2.75), rng.uniform(1.95, 2.1)),
        }[style]
        belt, bonnet, boot, front_rake, back_rake, taper = (
            rng.uniform(0.5, 0.58),
            rng.uniform(0.12, 0.19),
            0,
            0.11,
            0.015,
            0.9,
        )
    else:
        style = rng.choice(["hatch", "saloon", "estate", "off-road", "small"], p=[0.3, 0.22, 0.16, 0.22, 0.1])
        length, height, width = {
            "hatch": (rng.uniform(3.8, 4.4), rng.uniform(1.42, 1.55), rng.uniform(1.68, 1.82)),
            "saloon": (rng.uniform(4.4, 5.0), rng.uniform(1.38, 1.5), rng.uniform(1.72, 1.9)),
            "estate": (rng.uniform(4.4, 4.9), rng.uniform(1.45, 1.6), rng.uniform(1.75, 1.88)),
            "off-road": (rng.uniform(4.2, 4.9), rng.uniform(1.62, 1.88), rng.uniform(1.8, 1.98)),
            "small": (rng.uniform(2.7, 3.6), rng.uniform(1.45, 1.6), rng.uniform(1.5, 1.68)),
        }[style]
        belt, bonnet = rng.uniform(0.56, 0.63), rng.uniform(0.2, 0.29)
        boot = rng.uniform(0.14, 0.2) if style == "saloon" else 0.01
        front_rake, back_rake = rng.uniform(0.12, 0.17), rng.uniform(0.03, 0.1) if style != "saloon" else 0.12
        taper = rng.uniform(0.78, 0.86)
    clear, belt_h, nose = rng.uniform(0.16, 0.24), belt * height, belt * height * rng.uniform(0.72, 0.84)
    back, front = -length / 2, length / 2
    screen = front - bonnet * length
    lower = Solid(
        [(back + 0.04, clear), (front - 0.04, clear), (front, nose), (front - 0.1, nose + 0.08), (screen, belt_h),
         (back + 0.03, belt_h), (back, belt_h * 0.8)],
        width / 2, paint,
    )  # fmt: skip
    rear, top_front, top_rear = back + boot * length, screen - front_rake * length, back + (boot + back_rake) * length
    narrow = lambda h: width / 2 * (0.97 - (0.97 - taper) * (h - belt_h) / (height - belt_h))
    upper = Solid(
        [(rear + 0.03, belt_h - 0.02), (screen + 0.02, belt_h - 0.02), (top_front, height), (top_rear, height)],
        narrow,
        paint,
    )

    glass = light.horizon * rng.uniform(0.06, 0.22) + np.array([24.0, 22, 20])
    low, high = belt_h + 0.02, height - 0.09 - 0.04 * (height - belt_h)
    share = np.array([low - belt_h, high - belt_h]) / (height - belt_h)
    fore, aft = screen + (top_front - screen) * share - 0.12, rear + (top_rear - rear) * share + 0.14
    pillar = (fore.mean() + aft.mean()) / 2 + rng.uniform(-0.1, 0.3)
    if van and style != "people":
        aft = np.full(2, fore.mean() - rng.uniform(0.7, 1.1))
        pillar = None
    upper.on_sides([(aft[0], low), (fore[0], low), (fore[1], high), (aft[1], high)], glass)
    if pillar is not None:
        for l in (pillar, (aft.mean() + pillar) / 2 - 0.1):
            upper.on_sides([(l - 0.04, low), (l + 0.04, low), (l + 0.04, high), (l - 0.04, high)], paint * 0.5)
    upper.on_edge(1, (-0.88, 0.88), (0.08, 0.9), glass * 1.15)
    if not (van and style != "people" and rng.random() < 0.6):
        upper.on_edge(3, (-0.84, 0.84), (0.16, 0.86 if not van else 0.6), glass * 0.95)
    if van and style != "people" and rng.random() < 0.5:  # a firm's stripe or sign on the side
        stripe = pick(rng, CAR_PAINTS)
        upper.on_sides(
            [(back + 0.3, low + 0.05), (aft[0] - 0.2, low + 0.05), (aft[0] - 0.2, high), (back + 0.3, high - 0.3)],
            stripe,
        )

    radius = rng.uniform(0.29, 0.37)
    trim = paint * 0.45 if rng.random() < 0.75 else np.full(3, 30.0)
    lower.on_sides(
        [(back + 0.06, clear), (front - 0.06, clear), (front - 0.03, clear + 0.14), (back + 0.04, clear + 0.14)], trim
    )
    lower.on_sides(
        [(back + 0.05, belt_h - 0.07), (screen, belt_h - 0.07), (screen, belt_h), (back + 0.05, belt_h)],
        np.minimum(paint * 1.15 + 8, 255),
    )
    for l in (screen - 0.25, screen - 1.2):
        lower.on_sides(
            [(l - 0.012, clear + 0.1), (l + 0.012, clear + 0.1), (l + 0.012, belt_h), (l - 0.012, belt_h)], paint * 0.55
        )
    add_wheels(lower, (back + 0.19 * length, front - 0.19 * length), radius, rng)
    tyre = np.full(3, 20.0)
    for edge, v in ((1, -clear / nose), (6, 1 + clear / belt_h)):
        for sign in (-1, 1):
            lower.on_edge(edge, (sign * 0.72, sign * 0.98), (0.02 if edge == 1 else 0.98, v * 0.999), tyre)
    lower.on_edge(1, (-0.96, 0.96), (0, 0.28), trim)
    lower.on_edge(1, (-0.5, 0.5), (0.5, 0.86), np.full(3, rng.uniform(20, 60)))
    lower.on_edge(1, (-0.24, 0.24), (0.3, 0.46), np.array([200.0, 205, 205]))
    lower.on_edge(6, (-0.96, 0.96), (0.7, 1), trim)
    lower.on_edge(6, (-0.26, 0.26), (0.36, 0.6), np.array([190.0, 200, 205]))
    lit = light.dark and rng.random() < 0.7
    add_lamps(lower, 1, 6, 0.6, 0.92, lit, lit or rng.random() < 0.2)
    return Model([lower, upper])


def make_truck(rng, light):
    """A cab and something to carry: box, canvas, tipper, flatbed, tank or a single tall body like a coach."""
    paint, cargo = pick(rng, CAR_PAINTS), pick(rng, [*CAR_PAINTS, "f2f2f0", "e8e6e0", "c9ccd0", "56634a"])
    width, height, length = rng.uniform(2.1, 2.55), rng.uniform(2.7, 3.7), rng.uniform(5.8, 10.5)
    kind = rng.choice(["box", "box", "canvas", "tipper", "flatbed", "coach"])
    back, front, deck, glass = -length / 2, length / 2, rng.uniform(0.75, 1.05), light.horizon * 0.12 + 22
    cab_length = rng.uniform(1.5, 2.1)
    cab_height = height * (1 if kind == "coach" else rng.uniform(0.72, 0.95))
    rear = front - cab_length
    cab = Solid(
        [(rear, 0.4), (front, 0.4), (front, 1.3), (front - 0.22, cab_height), (rear, cab_height)], width * 0.48, paint
    )
    cab.on_edge(2, (-0.9, 0.9), (0.12, 0.72), glass)
    cab.on_sides(
        [(rear + 0.45, 1.45), (front - 0.16, 1.45), (front - 0.3, cab_height - 0.4), (rear + 0.45, cab_height - 0.4)],
        glass,
    )
    cab.on_edge(1, (-0.6, 0.6), (0.3, 0.75), np.full(3, 35.0))
    cab.on_edge(1, (-0.95, 0.95), (0, 0.2), paint * 0.4)
    chassis = cuboid(length - 0.3, deck - 0.45, width * 0.8, np.full(3, 38.0), 0.45, -0.1)
    body_length = rear - 0.12 - back
    body_height = {"tipper": 1.1, "flatbed": 0.35}.get(kind, height - deck)
    body = cuboid(body_length, body_height, width, cargo, deck, back + body_length / 2)
    top = deck + body_height
    if kind == "canvas":
        for l in np.arange(back + 0.4, rear - 0.3, 0.8):
            body.on_sides([(l, deck), (l + 0.07, deck), (l + 0.07, top), (l, top)], cargo * 0.8)
    elif kind == "coach":
        body = cuboid(
            body_length + 0.12, body_height + 0.3, width * 0.97, paint, deck - 0.3, back + body_length / 2 + 0.06
        )
        lefts = np.arange(back + 0.3, rear - 0.9, 1.25)
        body.on_sides(
            [[(l, top - 1.25), (l + 1.1, top - 1.25), (l + 1.1, top - 0.35), (l, top - 0.35)] for l in lefts], glass
        )
        body.on_edge(3, (-0.85, 0.85), (0.1, 0.5), glass)
    elif kind == "box" and rng.random() < 0.7:
        low, high = sorted(rng.uniform(deck + 0.3, top - 0.2, 2))
        body.on_sides(
            [(back + 0.4, low), (rear - 0.6, low), (rear - 0.6, high), (back + 0.4, high)], pick(rng, CAR_PAINTS)
        )
    if kind in ("box", "canvas", "tipper"):
        body.on_edge(3, (-0.03, 0.03), (0, 1), cargo * 0.5)
        body.on_edge(3, (-0.97, 0.97), (0.94, 1.0), np.full(3, 60.0))
    lit = light.dark and rng.random() < 0.7
    radius = rng.uniform(0.42, 0.52)
    add_wheels(chassis, (back + 0.16 * length, front - 0.15 * length), radius, rng)
    if length > 8:
        add_wheels(chassis, (back + 0.16 * length + 2.2 * radius,), radius, rng)
    for sign in (-1, 1):
        cab.on_edge(1, (sign * 0.66, sign * 0.92), (0.2, 0.4), np.array([210.0, 225, 235]), 0.6 * lit)
        chassis.on_edge(3, (sign * 0.7, sign), (0.1, 0.9), np.array([40.0, 30, 235 if lit else 140]), 0.4 * lit)
        chassis.on_edge(3, (sign * 0.55, sign), (1, 1 + 0.44 / (deck - 0.45)), np.full(3, 18.0))
        cab.on_edge(1, (sign * 0.62, sign * 0.95), (-0.42, 0.0), np.full(3, 18.0))
    return Model([chassis, body, cab])


def limb(p, q, radius, colour):
    return Limb(np.array(p, float), np.array(q, float), radius, colour)


def make_pedestrian(rng, light, still=False):
    """Upright, walking or standing; adult or child; with or without coat, bag and hat."""
    scale = rng.uniform(0.62, 0.8) if rng.random() < 0.14 else rng.uniform(0.9, 1.08)
    bulk = rng.uniform(0.85, 1.25)
    top, leg = pick(rng, CLOTHES), pick(rng, TROUSERS)
    skin, hair = pick(rng, SKINS, 0.05), pick(rng, ["1c1612", "2e2018", "5a4028", "a08050", "9a9690"])
    shoe = np.full(3, rng.uniform(15, 80))
    swing = 0.0 if still else rng.uniform(-0.36, 0.36)
    stoop = rng.uniform(-0.02, 0.1)
    hip, neck, wide = 0.9, 1.42, 0.19 * bulk
    limbs = []
    for side, phase in ((-1, swing), (1, -swing)):
        w = side * 0.09
        knee = (phase * 0.55, 0.5, w)
        foot = (phase - 0.08 * abs(phase), 0.07 + 0.1 * max(0, -phase), w)
        limbs += [limb((0, hip, w), knee, 0.085 * bulk, leg), limb(knee, foot, 0.066 * bulk, leg)]
        limbs += [limb(foot, (foot[0] + 0.13, foot[1] - 0.02, w), 0.05, shoe)]
        shoulder, hand = (stoop, neck - 0.06, side * wide), (stoop - phase * 0.75 + 0.05, 0.82, side * (wide + 0.05))
        elbow = (stoop - phase * 0.3 - 0.04, 1.1, side * (wide + 0.04))
        limbs += [
            limb(shoulder, elbow, 0.06 * bulk, top * 0.92),
            limb(elbow, hand, 0.048 * bulk, top * 0.92),
            limb(hand, hand, 0.055, skin),
        ]
    for w in (-0.07 * bulk, 0.07 * bulk):
        limbs += [limb((0, hip + 0.04, w), (stoop, neck - 0.08, w * 1.35), 0.115 * bulk, top)]
    if rng.random() < 0.35:  # coat or skirt
        limbs += [
            limb((0, hip - rng.uniform(0.1, 0.32), w), (0, hip + 0.1, w), 0.12 * bulk, top * 0.95)
            for w in (-0.05, 0.05)
        ]
    if rng.random() < 0.3:
        limbs += [limb((stoop - 0.2, 1.08, 0), (stoop - 0.2, 1.32, 0), 0.13, pick(rng, CLOTHES))]
    limbs += [limb((stoop, neck, 0), (stoop + 0.02, neck + 0.1, 0), 0.06, skin)]
    limbs += [limb((stoop + 0.03, 1.6, 0), (stoop + 0.03, 1.63, 0), 0.105, skin)]
    limbs += [limb((stoop - 0.01, 1.65, 0), (stoop - 0.01, 1.67, 0.0), 0.108, hair if rng.random() < 0.8 else top)]
    return Model(limbs=[limb(a.p * scale, a.q * scale, a.radius * scale, a.colour) for a in limbs])


def bicycle(rng):
    frame, tyre = pick(rng, CAR_PAINTS), np.full(3, rng.uniform(20, 45))
    limbs = []
    for l in (-0.53, 0.53):
        rim = np.insert(disc(l, 0.34, 0.32, 12), 2, 0, -1)
        limbs += [limb(a, b, 0.022, tyre) for a, b in zip(rim, np.roll(rim, -1, 0))]
    crank, saddle, head, back, fore = (
        (-0.05, 0.3, 0),
        (-0.2, 0.88, 0),
        (0.37, 0.85, 0),
        (-0.53, 0.34, 0),
        (0.53, 0.34, 0),
    )
    tubes = ((crank, saddle), (crank, head), (saddle, head), (back, saddle), (back, crank), (fore, head))
    limbs += [limb(a, b, 0.024, frame) for a, b in tubes]
    limbs += [limb((0.36, 1.0, -0.24), (0.36, 1.0, 0.24), 0.022, tyre), limb(head, (0.36, 1.0, 0), 0.022, frame)]
    limbs += [limb((-0.3, 0.92, 0), (-0.12, 0.92, 0), 0.045, tyre)]
    return limbs


def make_cyclist(rng, light):
    top, leg = pick(rng, CLOTHES), pick(rng, TROUSERS)
    skin, scale = pick(rng, SKINS, 0.05), rng.uniform(0.92, 1.08)
    bulk, lean = rng.uniform(0.85, 1.15), rng.uniform(0.05, 0.3)
    limbs = bicycle(rng)
    hip, neck = np.array([-0.2, 0.98, 0]), np.array([-0.05 + lean, 1.5 - 0.35 * lean, 0])
    phase = rng.uniform(0, 2 * np.pi)
    for side, angle in ((-1, phase), (1, phase + np.pi)):
        foot = np.array([-0.05 + 0.16 * np.cos(angle), 0.32 + 0.16 * np.sin(angle), side * 0.12])
        knee = (hip + foot) / 2 + (0.24, 0.06, side * 0.05)
        start = hip + (0, 0, side * 0.09)
        limbs += [limb(start, knee, 0.085 * bulk, leg), limb(knee, foot, 0.062 * bulk, leg)]
        limbs += [limb(foot, foot + (0.12, -0.02, 0), 0.048, np.full(3, 40.0))]
        shoulder, hand = neck + (0, -0.07, side * 0.18), np.array([0.36, 1.02, side * 0.22])
        elbow = (shoulder + hand) / 2 + (-0.03, -0.06, side * 0.05)
        limbs += [limb(shoulder, elbow, 0.056 * bulk, top * 0.92), limb(elbow, hand, 0.045, top * 0.92)]
    for w in (-0.07, 0.07):
        limbs += [limb(hip + (0, 0.02, w), neck + (0, -0.08, w * 1.3), 0.115 * bulk, top)]
    if rng.random() < 0.3:
        limbs += [limb(hip + (-0.1, 0.2, 0), neck + (-0.18, -0.1, 0), 0.12, pick(rng, CLOTHES))]
    skull = neck + (0.06, 0.17, 0)
    hat = pick(rng, [*CAR_PAINTS, "1c1612", "5a4028"])
    limbs += [limb(neck, skull, 0.06, skin), limb(skull, skull + (0, 0.02, 0), 0.105, skin)]
    limbs += [limb(skull + (-0.03, 0.05, 0), skull + (0.02, 0.06, 0), 0.11, hat)]
    return Model(limbs=[limb(a.p * scale, a.q * scale, a.radius * scale, a.colour) for a in limbs])


MAKERS = {
    "Car": make_car,
    "Van": partial(make_car, van=True),
    "Truck": make_truck,
    "Pedestrian": make_pedestrian,
    "Cyclist": make_cyclist,
}


# ---------------------------------------------------------------------------------------------- clutter


def make_tree(rng, light):
    height, trunk = rng.uniform(3.5, 9), rng.uniform(0.1, 0.24)
    bark, leaf = pick(rng, ["4a3a2c", "5a4a3c", "6a6058", "3c3430"]), pick(rng, LEAVES)
    crown, spread = height * rng.uniform(0.3, 0.42), rng.uniform(0.9, 2.2)
    limbs = [limb((0, 0, 0), (rng.normal(0, 0.15), crown + 0.4, rng.normal(0, 0.15)), trunk, bark)]
    for _ in range(int(rng.integers(16, 30))):
        offset = rng.normal(0, 0.5, 3) * (spread, (height - crown) / 2.4, spread)
        p = np.array([0, (height + crown) / 2, 0]) + offset
        limbs.append(
            limb(p, p, rng.uniform(0.3, 0.55) * spread, leaf * rng.uniform(0.6, 1.25) + 14 * np.sign(offset[1]))
        )
    return Model(limbs=limbs)


def make_post(rng, light):
    """Bollards, hydrants and stumps: as tall and wide as a person far away."""
    height, radius = rng.uniform(0.7, 1.7), rng.uniform(0.08, 0.2)
    colour, cap = pick(rng, [*CLOTHES, "9aa0a4", "5a4a3c"]), pick(rng, [*CLOTHES, *SKINS])
    limbs = [limb((0, radius, 0), (0, height - radius, 0), radius, colour)]
    limbs += [limb((0, height, 0), (0, height, 0), radius * rng.uniform(0.6, 1.0), cap)]
    return Model(limbs=limbs)


def make_lamp(rng, light):
    height, grey, reach = rng.uniform(4.5, 7.5), np.full(3, rng.uniform(50, 130)), rng.uniform(0.6, 1.6)
    box = cuboid(0.3, 0.12, 0.6, np.array([190.0, 225, 240]) if light.dark else grey, height - 0.1)
    box = Solid(box.profile, 0.3, box.sides[0].colour)
    if light.dark:
        box.on_sides(box.profile, np.array([170.0, 225, 255]), 1.3)
        box.on_edge(0, (-1, 1), (0, 1), np.array([170.0, 225, 255]), 1.3)
        box.on_edge(3, (-1, 1), (0, 1), np.array([170.0, 225, 255]), 1.3)
    return Model(
        [box],
        [limb((0, 0, reach), (0, height, reach), 0.07, grey), limb((0, height, reach), (0, height, 0), 0.05, grey)],
    )


def make_sign(rng, light):
    height, grey = rng.uniform(1.9, 2.8), np.full(3, rng.uniform(90, 150))
    colour, inner = (bgr(c) for c in rng.permutation(["c02028", "f0f0f0", "2050a0", "e8c030"])[:2])
    wide = rng.uniform(0.3, 0.45)
    panel = cuboid(0.04, 2 * wide, 2 * wide, colour, height - wide)
    panel.on_edge(1, (-0.7, 0.7), (0.15, 0.85), inner)
    panel.on_edge(3, (-0.7, 0.7), (0.15, 0.85), inner if rng.random() < 0.5 else grey)
    return Model([panel], [limb((-0.05, 0, 0), (-0.05, height, 0), 0.035, grey)])


def make_traffic_light(rng, light):
    height = rng.uniform(2.4, 3.2)
    box = cuboid(0.25, 0.85, 0.3, np.full(3, 28.0), height)
    shine = [bgr("ff3020"), bgr("ffb020"), bgr("30ff70")]
    on = int(rng.integers(3))
    for i in range(3):
        v = 0.82 - 0.32 * i
        for edge, mid in ((1, v), (3, 1 - v)):
            box.on_edge(
                edge, (-0.55, 0.55), (mid - 0.11, mid + 0.11), shine[i] * (1 if i == on else 0.2), 0.5 * (i == on)
            )
    return Model([box], [limb((0, 0, 0), (0, height, 0), 0.06, np.full(3, 60.0))])


def make_bin(rng, light):
    """Bins, skips, switch boxes, kiosks and huts: box-like, in the colours of vehicles."""
    length, height, width = [
        (0.6, 1.1, 0.6),
        (1.4, 1.3, 1.1),
        (0.5, 1.5, 1.3),
        (2.6, 2.4, 2.0),
        (4.0, 2.5, 2.3),
        (3.2, 1.5, 1.6),
    ][int(rng.integers(6))] * rng.uniform(0.85, 1.15, 3)
    colour = pick(rng, [*CAR_PAINTS, "3f5a3c", "56634a", "8a6a4a"])
    box = cuboid(length, height, width, colour)
    dark = colour * 0.5
    box.on_sides(
        [(-length / 2, height * 0.9), (length / 2, height * 0.9), (length / 2, height), (-length / 2, height)], dark
    )
    for edge in (1, 3):
        box.on_edge(edge, (-1, 1), (0.9, 1) if edge == 1 else (0, 0.1), dark)
        if rng.random() < 0.6:
            box.on_edge(edge, (-0.7, 0.7), (0.45, 0.8), np.full(3, 45.0) if rng.random() < 0.6 else colour * 1.2)
    if rng.random() < 0.5:
        box.on_sides(
            [
                (-length * 0.35, height * 0.45),
                (length * 0.3, height * 0.45),
                (length * 0.3, height * 0.8),
                (-length * 0.35, height * 0.8),
            ],
            np.full(3, 45.0),
        )
    if rng.random() < 0.3:
        add_wheels(box, (-length * 0.3, length * 0.3), 0.14 * min(length, 2), rng)
    return Model([box])


def make_trailer(rng, light):
    """Parked trailers and caravans: wheels, windows and paint of a van, but nothing that drives them."""
    length, height, width = rng.uniform(2.6, 5.2), rng.uniform(1.3, 2.4), rng.uniform(1.6, 2.2)
    colour = pick(rng, [*CAR_PAINTS, "f2f2f0", "e8e6e0"])
    body = cuboid(length, height - 0.45, width, colour, 0.45)
    if rng.random() < 0.6:
        body.on_sides(
            [
                (-length * 0.25, height * 0.6),
                (length * 0.2, height * 0.6),
                (length * 0.2, height * 0.85),
                (-length * 0.25, height * 0.85),
            ],
            np.full(3, 50.0),
        )
        body.on_edge(3, (-0.6, 0.6), (0.25, 0.55), np.full(3, 50.0))
    add_wheels(body, (-0.1 * length,), 0.3, rng)
    for sign in (-1, 1):
        body.on_edge(3, (sign * 0.72, sign * 0.95), (0.8, 0.92), np.array([38.0, 30, 150]))
    return Model([body], [limb((length / 2, 0.45, 0), (length / 2 + 0.9, 0.4, 0), 0.05, np.full(3, 40.0))])


def make_billboard(rng, light):
    """A hoarding with a picture of a car or of people: no object, whatever it shows."""
    wide, height, base = rng.uniform(2.4, 4.4), rng.uniform(1.6, 2.6), rng.uniform(0.2, 1.2)
    board = cuboid(0.1, height, wide, np.full(3, 110.0), base)
    ground, paint = pick(rng, [*WALLS, "e8e6e0", "6f8fae"]), pick(rng, CAR_PAINTS)
    for edge, flip in ((1, False), (3, True)):

        def v(low, high, flip=flip):
            return (1 - low, 1 - high) if flip else (low, high)

        board.on_edge(edge, (-0.96, 0.96), v(0.05, 0.95), ground)
        if rng.random() < 0.6:
            board.on_edge(edge, (-0.75, 0.75), v(0.28, 0.52), paint)
            board.on_edge(edge, (-0.5, 0.42), v(0.52, 0.74), paint * 0.9)
            board.on_edge(edge, (-0.42, 0.34), v(0.53, 0.69), np.full(3, 40.0))
            for u in (-0.45, 0.45):
                board.on_edge(edge, (u - 0.12, u + 0.12), v(0.17, 0.38), np.full(3, 25.0))
        else:
            for u in rng.uniform(-0.7, 0.7, 2):
                board.on_edge(edge, (u - 0.09, u + 0.09), v(0.08, 0.45), pick(rng, TROUSERS))
                board.on_edge(edge, (u - 0.12, u + 0.12), v(0.42, 0.75), pick(rng, CLOTHES))
                board.on_edge(edge, (u - 0.06, u + 0.06), v(0.75, 0.9), pick(rng, SKINS))
    return Model([board], [limb((0, 0, w), (0, base, w), 0.06, np.full(3, 60.0)) for w in (-wide / 3, wide / 3)])


def make_hedge(rng, light):
    length, height = rng.uniform(2, 6), rng.uniform(0.7, 1.7)
    leaf = pick(rng, LEAVES)
    box = cuboid(length, height * 0.8, 0.7, leaf * 0.75)
    blobs = []
    for _ in range(int(length * 7)):
        p = np.array([rng.uniform(-0.5, 0.5) * length, rng.uniform(0.2, 0.9) * height, rng.uniform(-0.3, 0.3)])
        blobs.append(limb(p, p, rng.uniform(0.12, 0.26), leaf * rng.uniform(0.65, 1.2)))
    return Model([box], blobs)


def make_fence(rng, light):
    length, height, colour = (
        rng.uniform(3, 8),
        rng.uniform(0.8, 1.4),
        pick(rng, ["5a4a3c", "9aa0a4", "2a2f3d", "e8e6e0"]),
    )
    limbs = [
        limb((l, 0, 0), (l, height, 0), 0.03, colour) for l in np.linspace(-length / 2, length / 2, int(length * 2.2))
    ]
    limbs += [limb((-length / 2, h, 0), (length / 2, h, 0), 0.03, colour) for h in (height * 0.35, height * 0.9)]
    return Model(limbs=limbs)


def make_bicycle(rng, light):
    return Model(limbs=bicycle(rng))


def make_building(rng, light, length, height, depth):
    wall = pick(rng, WALLS)
    body = cuboid(length, height, depth, wall)
    pane = light.horizon * rng.uniform(0.1, 0.35) + 18
    lamp = np.array([130.0, 205, 250])
    storey, column = rng.uniform(2.7, 3.4), rng.uniform(1.6, 3.2)
    wide, tall = column * rng.uniform(0.35, 0.7), storey * rng.uniform(0.4, 0.65)
    frame = np.minimum(wall * rng.uniform(0.7, 1.3), 250)

    def grid(extent, start):
        left = np.arange(-extent / 2 + column * 0.3, extent / 2 - wide - 0.2, column)
        low = np.arange(start, height - tall - 0.3, storey)
        l, h = (a.ravel() for a in np.meshgrid(left, low))
        corner = lambda grow: np.stack(
            [np.stack([l - grow, h - grow], -1), np.stack([l + wide + grow, h - grow], -1),
             np.stack([l + wide + grow, h + tall + grow], -1), np.stack([l - grow, h + tall + grow], -1)], 1
        )  # fmt: skip
        return corner(0.1), corner(0.0)

    shop = rng.random() < 0.4
    outer, inner = grid(length, storey + 0.8 if shop else 0.9)
    if len(inner):
        body.on_sides(outer, frame)
        body.on_sides(inner, pane)
        lit = rng.random(len(inner)) < (0.35 if light.dark else 0.04)
        if lit.any():
            body.on_sides(inner[lit], lamp if light.dark else pane * 1.5 + 30)
    if shop:
        glow = lamp * rng.uniform(0.5, 0.9) if light.dark else pane * 1.1
        left = np.arange(-length / 2 + 0.4, length / 2 - 2.4, 3.0)
        body.on_sides([[(l, 0.4), (l + 2.3, 0.4), (l + 2.3, 2.6), (l, 2.6)] for l in left] or [[(0, 0)] * 4], glow)
        band = pick(rng, CAR_PAINTS)
        body.on_sides([(-length / 2, 2.8), (length / 2, 2.8), (length / 2, 3.3), (-length / 2, 3.3)], band)
    body.on_sides(
        [(-length / 2, height - 0.3), (length / 2, height - 0.3), (length / 2, height), (-length / 2, height)],
        wall * 0.7,
    )
    body.on_sides([(-length / 2, 0), (length / 2, 0), (length / 2, 0.5), (-length / 2, 0.5)], wall * 0.65)
    for u in (-0.6, 0.0, 0.6):
        for v in np.arange(0.1, 0.85, 0.25):
            body.on_edge(3, (u - 0.12, u + 0.12), (v, v + 0.12), pane)
    return Model([body])


CLUTTER = [
    (make_tree, 0.26), (make_post, 0.14), (make_lamp, 0.08), (make_sign, 0.1), (make_traffic_light, 0.04),
    (make_bin, 0.13), (make_billboard, 0.06), (make_hedge, 0.08), (make_fence, 0.04), (make_bicycle, 0.07),
]  # fmt: skip


# ---------------------------------------------------------------------------------------------- the scene


@dataclass
class Thing:
    """A model on the ground. `low`, `high`: its footprint (s, t), grown to the road's axes."""

    model: Model
    kind: str | None  # KITTI's type, "DontCare", or None for what has no label
    location: np.ndarray  # camera axes
    rotation_y: float
    low: np.ndarray
    high: np.ndarray
    shadow: float = 1.0  # share of the sun that reaches it
    number: int = 0
    box: np.ndarray = None  # (4,) full extent in pixels, image borders ignored
    pixels: int = 0  # supersampled pixels inside the image before others cover them
    inside: np.ndarray = None  # (4,) extent in pixels of what lies inside the image

    def to_camera(self, points):
        c, s = math.cos(self.rotation_y), math.sin(self.rotation_y)
        return points @ np.array([[c, 0, -s], [0, -1, 0], [s, 0, c]]) + self.location


@dataclass
class Scene:
    camera: Camera
    light: Light
    yaw: float  # of the road against the camera
    offset: float  # of the camera from the road's middle line
    half: float  # of the road's width
    pavement: float
    things: list = field(default_factory=list)

    def at(self, s, t):
        c, sn = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([(t - self.offset) * c + s * sn, self.camera.height, s * c - (t - self.offset) * sn])

    def place(self, model, s, t, heading=0.0, kind=None, gap=0.25, shadow=1.0, near=1.3):
        """Put it there unless something stands there already or it comes too near to the camera; says whether."""
        c, sn = abs(np.cos(heading)), abs(np.sin(heading))
        length, _, width = model.size
        reach = np.array([length * c + width * sn, length * sn + width * c]) / 2
        low, high = (s, t) - reach, (s, t) + reach
        if any((low < o.high + gap).all() and (high > o.low - gap).all() for o in self.things):
            return False
        rotation = (self.yaw + heading + np.pi / 2) % (2 * np.pi) - np.pi
        thing = Thing(model, kind, self.at(s, t), rotation, low, high, shadow)
        corners = np.array([(i * length / 2, 0, j * width / 2) for i in (-1, 1) for j in (-1, 1)])
        if thing.to_camera(corners)[:, 2].min() < near:
            return False
        self.things.append(thing)
        return True

    def back_to_front(self):
        """Order for painting: of two things parted by a line along or across the road, the far side's comes first."""
        low, high = (np.array([getattr(o, name) for o in self.things]) for name in ("low", "high"))
        distance = np.array([np.hypot(o.location[0], o.location[2]) for o in self.things])
        before = np.zeros((len(distance),) * 2, bool)
        after_s = low[:, None, 0] >= high[None, :, 0]
        beyond = ((low[:, None, 1] >= high[None, :, 1]) & (high[None, :, 1] >= self.offset)) | (
            (high[:, None, 1] <= low[None, :, 1]) & (low[None, :, 1] <= self.offset)
        )
        before = (after_s & ~beyond.T) | (beyond & ~after_s.T)
        apart = after_s | after_s.T | beyond | beyond.T
        before |= ~apart & (distance[:, None] > distance[None])
        order, left = [], list(range(len(distance)))
        while left:
            blocked = before[np.ix_(left, left)].sum(0)
            # a ring of things that hide each other is broken at the farthest of the least hidden
            best = min(range(len(left)), key=lambda i: (blocked[i], -distance[left[i]]))
            order.append(self.things[left.pop(best)])
        return order


def compose(rng, width, height):
    light = make_light(rng)
    focal = FOCAL * width * rng.uniform(0.92, 1.08)
    camera = Camera(
        width, height, focal, width * rng.uniform(0.47, 0.53), height * rng.uniform(0.4, 0.52), rng.uniform(1.5, 1.8)
    )
    lanes = int(rng.choice([2, 2, 3, 4]))
    half = lanes * rng.uniform(2.9, 3.5) / 2 + rng.choice([0.3, 2.2])
    scene = Scene(camera, light, rng.normal(0, 0.07), half * rng.uniform(0.1, 0.55), half, rng.uniform(1.8, 4.5))
    if rng.random() < 0.15:
        scene.offset = half + scene.pavement * rng.uniform(0.2, 0.7)  # from the pavement
    add_buildings(scene, rng)
    add_objects(scene, rng, lanes)
    add_clutter(scene, rng)
    add_crowd_far_away(scene, rng)
    return scene


def add_buildings(scene, rng):
    for side in (-1, 1):
        if rng.random() < 0.2:
            continue
        setback = scene.half + scene.pavement + rng.choice([0.2, 3.0, 7.0])
        s = rng.uniform(-2, 6)
        while s < 110:
            length, depth = rng.uniform(6, 18), rng.uniform(7, 12)
            if rng.random() < 0.82:
                model = make_building(rng, scene.light, length, rng.uniform(4, 14), depth)
                scene.place(
                    model, s + length / 2, side * (setback + depth / 2 + rng.uniform(0, 0.6)), 0.0, near=-99, gap=-1
                )
            s += length + (rng.uniform(1, 8) if rng.random() < 0.3 else 0)


def add_objects(scene, rng, lanes):
    half, light = scene.half, scene.light

    def shadow():
        return float(rng.choice([1.0, 1.0, 0.25]))

    def vehicle(s, t, heading, mix=(0.66, 0.19, 0.15)):
        kind = str(rng.choice(["Car", "Van", "Truck"], p=mix))
        paint = {}
        if kind == "Car" and rng.random() < 0.22:  # nearly the colour of the road or of a wall
            paint["paint"] = bgr(rng.choice(["6a6c70", "585a5e", "7d7d7c", *WALLS])) * rng.uniform(0.8, 1.2)
        model = MAKERS[kind](rng, light, **paint)
        return scene.place(model, s, t, heading + rng.normal(0, 0.03), kind, shadow=shadow())

    lane_width = 2 * half / lanes
    for lane in range(lanes):
        t = -half + (lane + 0.5) * lane_width
        heading = 0.0 if t > 0 else np.pi
        s = rng.uniform(4, 22)
        while s < 60:
            if rng.random() < 0.6:
                vehicle(s, t + rng.normal(0, 0.25), heading)
            s += rng.uniform(7, 24)
    for side in (-1, 1):
        style = rng.choice(["none", "kerb", "kerb", "square"])
        s = rng.uniform(3, 12)
        while style != "none" and s < 55:
            if rng.random() < 0.72:
                if style == "kerb":
                    vehicle(s, side * (half - rng.uniform(0.7, 1.1)), rng.choice([0, np.pi]), (0.72, 0.2, 0.08))
                else:
                    vehicle(s, side * (half + 2.4), rng.choice([-1, 1]) * np.pi / 2, (0.78, 0.18, 0.04))
            if rng.random() < 0.06:
                scene.place(make_trailer(rng, light), s, side * (half - 0.9), rng.choice([0, np.pi]))
            s += rng.uniform(5.2, 7.5) if style == "kerb" else rng.uniform(2.6, 4.5)
    if rng.random() < 0.3:  # someone turns or crosses
        vehicle(rng.uniform(9, 35), rng.uniform(-half, half), rng.uniform(-np.pi, np.pi))

    for _ in range(int(rng.poisson(3.2))):
        s, side = rng.uniform(5, 12) if rng.random() < 0.3 else rng.uniform(8, 42), rng.choice([-1, 1])
        t = side * (half + rng.uniform(0.4, scene.pavement)) if rng.random() < 0.75 else rng.uniform(-half, half)
        heading = rng.choice([0, np.pi]) + rng.normal(0, 0.3) if abs(t) > half else side * np.pi / 2
        for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
            model = make_pedestrian(rng, light, still=rng.random() < 0.3)
            where = s + rng.normal(0, 0.35), t + rng.normal(0, 0.4)
            scene.place(model, *where, heading + rng.normal(0, 0.2), "Pedestrian", 0.02, shadow())
    for _ in range(int(rng.poisson(1.9))):
        side = rng.choice([-1, 1])
        t = side * (half + rng.uniform(-2.2, 1.2))
        heading = (0.0 if t > 0 else np.pi) if rng.random() < 0.65 else rng.uniform(-np.pi, np.pi)
        s = rng.uniform(5, 12) if rng.random() < 0.25 else rng.uniform(8, 40)
        scene.place(make_cyclist(rng, light), s, t, heading + rng.normal(0, 0.1), "Cyclist", 0.1, shadow())


def add_clutter(scene, rng):
    makers, weights = zip(*CLUTTER)
    for _ in range(int(rng.integers(10, 26))):
        make = makers[rng.choice(len(makers), p=np.array(weights) / sum(weights))]
        t = rng.choice([-1, 1]) * (scene.half + 0.35 + abs(rng.normal(0, scene.pavement)))
        heading = (
            rng.choice([0, np.pi / 2, np.pi, -np.pi / 2]) if make is not make_fence and make is not make_hedge else 0.0
        )
        if make in (make_sign, make_traffic_light, make_billboard):
            heading = rng.choice([0, np.pi]) + rng.normal(0, 0.15)
        if make is make_lamp:
            t, heading = np.sign(t) * (scene.half + 0.5), 0.0 if t > 0 else np.pi
        scene.place(make(rng, scene.light), rng.uniform(5, 55), t, heading, near=2.2)


def add_crowd_far_away(scene, rng):
    """Objects so far away that no one could say which they are: DontCare regions."""
    for _ in range(int(rng.choice([0, 1, 2]))):
        s, t = rng.uniform(62, 85), rng.uniform(-scene.half, scene.half)
        for _ in range(int(rng.integers(2, 6))):
            kind = str(rng.choice(["Car", "Car", "Van", "Pedestrian"]))
            scene.place(
                MAKERS[kind](rng, scene.light),
                s + rng.normal(0, 4),
                t + rng.normal(0, 2.5),
                rng.choice([0, np.pi]),
                "DontCare",
            )


# ---------------------------------------------------------------------------------------------- painting


@lru_cache(maxsize=1)
def noise_tile():
    """(512, 512) float32 of zero mean and unit variance that tiles: 1/f noise."""
    spectrum = np.fft.rfft2(np.random.default_rng(0).normal(size=(512, 512)))
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512)[None])
    frequency[0, 0] = np.inf
    tile = np.fft.irfft2(spectrum / frequency, s=(512, 512))
    return ((tile - tile.mean()) / tile.std()).astype(np.float32)


def tiled_noise(x, y):
    return cv2.remap(
        noise_tile(), x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )


def paint_backdrop(scene, canvas, rng):
    """Sky, a far skyline, and the ground with its lanes, markings, pavement and shadows."""
    camera, light = scene.camera, scene.light
    rows, columns = canvas.ids.shape
    v, u = (
        (np.arange(rows, dtype=np.float32) + 0.5) / SUPERSAMPLING,
        (np.arange(columns, dtype=np.float32) + 0.5) / SUPERSAMPLING,
    )
    split = int(np.clip(np.ceil(camera.cy * SUPERSAMPLING), 1, rows - 1))

    rise = np.clip((camera.cy - v[:split]) / camera.cy, 0, 1)[:, None, None]
    sky = light.horizon * (1 - rise) ** 1.6 + light.zenith * (1 - (1 - rise) ** 1.6)
    grid_u, grid_v = np.meshgrid(u, camera.cy - v[:split])
    scale = 512 / camera.width
    cloud = tiled_noise(rng.uniform(0, 512) + grid_u * 0.5 * scale, rng.uniform(0, 512) + grid_v * 1.6 * scale)
    cloud = np.clip(cloud * 0.8 + light.clouds - 0.5, 0, 1)[..., None] * 0.55 * np.minimum(1, rise * 3)
    white = light.horizon * 0.6 + light.zenith * 0.2 + (10 if light.dark else 50)
    canvas.image[:split] = np.clip(sky * (1 - cloud) + white * cloud, 0, 255)

    edge = tiled_noise(rng.uniform(0, 512) + u[None] * scale, np.full((1, columns), rng.uniform(0, 512)))[0]
    steps = np.repeat(rng.uniform(0, 1, 60), -(-columns // 60))[:columns]
    skyline = camera.cy - camera.height_px * (0.04 + 0.03 * np.abs(edge) + rng.uniform(0, 0.08) * steps)
    far = light.veil(pick(rng, LEAVES + WALLS) * (light.ambient + light.sun * 0.4), rng.uniform(60, 130))
    canvas.image[:split][v[:split, None] > skyline[None]] = np.clip(far, 0, 255)

    z = camera.focal * camera.height / np.maximum(v[split:] - camera.cy, 0.08)[:, None]
    x = (u[None] - camera.cx) * z / camera.focal
    c, sn, offset, half, pavement = (
        float(n) for n in (np.cos(scene.yaw), np.sin(scene.yaw), scene.offset, scene.half, scene.pavement)
    )  # Python's floats leave the arrays in float32
    s, t = z * c + x * sn, x * c - z * sn + offset
    fine = np.minimum(1, 14 / z)  # what is too fine for that distance would flicker
    noise = tiled_noise(s * 40, t * 40) * fine + 0.5 * tiled_noise(s * 3 + 99, t * 3)
    asphalt = np.full(3, rng.uniform(70, 120)) + rng.normal(0, 3, 3)
    slabs = pick(rng, ["a8a49c", "b8b0a4", "98948e", "a89888"])
    verge = pick(rng, [*LEAVES, "8a8478", "7a7468", "a09888"])
    ground = np.empty((*t.shape, 3), np.float32)
    away = np.abs(t)
    ground[:] = asphalt
    ground[away > half] = slabs
    ground[(away > half) & (away < half + 0.16)] = slabs * 1.18
    ground[away > half + pavement] = verge
    joint = ((t % 0.8 < 0.04) | (s % 0.8 < 0.04)) & (away > half) & (away < half + pavement) & (z < 18)
    ground[joint] *= 0.82
    ground *= 1 + 0.075 * noise[..., None]
    road = away < half
    wear = np.cos(t / half * np.pi * 2) * 0.05
    ground[road] *= (1 - wear[road])[..., None]
    paint = np.full(3, rng.uniform(190, 235))
    marks = (np.abs(t) < 0.07) & (s % 9 < 4.5) & road
    marks |= (np.abs(away - half * 0.5) < 0.06) & (s % 6 < 2.5) & (half > 5)
    if rng.random() < 0.5:
        marks |= np.abs(away - half + 0.35) < 0.06
    if rng.random() < 0.4:
        zebra = rng.uniform(7, 28)
        marks |= (s > zebra) & (s < zebra + 3) & road & (t % 1.0 < 0.5)
    ground[marks] = ground[marks] * 0.25 + paint * 0.75

    shade = np.ones(t.shape, np.float32)
    strong = float(light.sun.mean() / (light.sun + light.ambient).mean())
    for thing in scene.things:
        paint_shadow(shade, thing, camera, light, split, strong)
    shade = cv2.GaussianBlur(shade, (0, 0), 1.5 * SUPERSAMPLING if strong < 0.25 else 0.5 * SUPERSAMPLING)
    ground *= np.float32(light.ambient + light.sun * max(0.15, -light.direction[1]))
    seen = np.exp(-z / float(light.haze))[..., None]
    ground *= shade[..., None] * seen
    ground += np.float32(light.horizon) * (1 - seen)
    canvas.image[split:] = np.clip(ground, 0, 255)


def paint_shadow(shade, thing, camera, light, split, strong):
    """Darken the ground where the thing keeps the sun off, and, whatever the weather, right beneath it."""
    length, height, width = thing.model.size
    base = np.array([(i * length / 2, 0, j * width / 2) for i in (-1, 1) for j in (-1, 1)])
    foot = thing.to_camera(base * 1.04)
    reach = -light.direction / max(0.25, -light.direction[1]) * min(height, 6)
    cast = foot + [reach[0], 0, reach[2]]
    cast[:, 1] = camera.height
    for points, factor in ((np.concatenate([foot, cast * 1.0]), 1 - 0.9 * strong), (foot, 0.45)):
        if factor < 0.45 and thing.kind is None and height > 3:
            factor = 0.6
        points = points[points[:, 2] > NEAR]
        if len(points) < 3:
            continue
        pixels = camera.project(points) * SUPERSAMPLING - (0, split)
        hull = cv2.convexHull(np.clip(pixels, -4000, 4000).astype(np.float32)).astype(np.int32)
        mask = np.zeros(shade.shape, np.uint8)
        cv2.fillConvexPoly(mask, hull, 1)
        np.minimum(shade, factor, out=shade, where=mask > 0)


def paint_thing(thing, canvas, light, halos):
    """Draw it over what is there; note its extent and the number of its pixels."""
    canvas.begin(thing.number)
    parts = [(thing.to_camera(np.stack([a.p, a.q])), a) for a in thing.model.limbs]
    parts += [([thing.to_camera(f.points) for f in faces], faces) for faces in thing.model.solids]

    def depth(part):
        points = part[0].mean(0) if isinstance(part[0], np.ndarray) else np.concatenate(part[0]).mean(0)
        return -np.hypot(points[0], points[2])

    # along a solid's own axis the nearer one is drawn last; one on top of another keeps its place in the model
    solids_first = sorted(parts, key=depth) if len(thing.model.solids) != 2 else parts
    for points, part in solids_first:
        if isinstance(part, Limb):
            distance = float(points[:, 2].mean())
            along = points[1] - points[0]
            normal = np.array([0.0, -0.25, -0.97]) if part.radius < 0.6 else np.array([0.0, -0.5, -0.85])
            colour = light.shade(part.colour, normal, distance, thing.shadow)
            canvas.capsule(points[0], points[1], part.radius, np.clip(colour, 0, 255))
            bright = light.shade(part.colour, light.direction, distance, thing.shadow)
            if part.radius * canvas.camera.focal / distance > 1.2 and np.linalg.norm(along) > 0:
                side = cross(along, points[0])
                side *= np.sign(side @ light.direction) * part.radius * 0.45 / (np.linalg.norm(side) + 1e-6)
                canvas.capsule(points[0] + side, points[1] + side, part.radius * 0.45, np.clip(bright, 0, 255))
            continue
        middle = np.concatenate(points).mean(0)
        for corners, face in zip(points, part):
            normal = cross(corners[1] - corners[0], corners[2] - corners[1])
            size = np.linalg.norm(normal)
            if size < 1e-9:
                continue
            centre = corners.mean(0)
            normal *= np.sign(normal @ (centre - middle)) / size
            if normal @ centre >= 0:
                continue
            distance = max(NEAR, float(np.linalg.norm(centre)))
            canvas.polygons(corners[None], np.clip(light.shade(face.colour, normal, distance, thing.shadow), 0, 255))
            for decor in face.decor:
                polygons = thing.to_camera(decor.polygons)
                if decor.glow and light.dark:
                    colour = light.veil(decor.colour, distance)
                    halos.append((polygons[0].mean(0), decor.glow, decor.colour, thing.number))
                else:
                    colour = light.shade(decor.colour, normal, distance, thing.shadow)
                canvas.polygons(polygons, np.clip(colour, 0, 255))
    thing.box = np.concatenate([canvas.low, canvas.high])
    if thing.number:
        own = (canvas.ids == thing.number).view(np.uint8)
        thing.pixels = cv2.countNonZero(own)
        left, top, width, height = cv2.boundingRect(own)
        thing.inside = np.array([left, top, left + width, top + height]) / SUPERSAMPLING


def paint_halos(canvas, halos, picture):
    """Light that lamps spill into the lens, of those that are not hidden."""
    camera = canvas.camera
    spill = np.zeros((camera.height_px, camera.width, 3), np.float32)
    for point, radius, colour, number in halos:
        if point[2] < NEAR:
            continue
        u, v = camera.project(point)
        column, row = int(u * SUPERSAMPLING), int(v * SUPERSAMPLING)
        if (
            not (0 <= row < canvas.ids.shape[0] and 0 <= column < canvas.ids.shape[1])
            or canvas.ids[row, column] != number
        ):
            continue
        size = min(14.0, max(1.2, radius * camera.focal / point[2]))
        cv2.circle(spill, (round(u * 16), round(v * 16)), round(size * 16), (colour * 0.5).tolist(), -1, cv2.LINE_AA, 4)
    scale = camera.width / 320
    spill = cv2.GaussianBlur(spill, (0, 0), 1.2 * scale) * 0.5 + cv2.GaussianBlur(spill, (0, 0), 5 * scale) * 0.7
    return picture + spill


def photograph(canvas, halos, rng):
    """What a camera makes of it: blur, exposure, contrast, tint, vignette and noise. Returns uint8."""
    size = canvas.camera.width, canvas.camera.height_px
    picture = cv2.resize(canvas.image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    if halos:
        picture = paint_halos(canvas, halos, picture)
    u, v = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    grain = tiled_noise(u * 2 + rng.uniform(0, 512), v * 2 + rng.uniform(0, 512))
    picture *= 1 + rng.uniform(0.01, 0.05) * grain[..., None]
    blur = max(0.0, rng.normal(0.25, 0.3)) * size[0] / 320
    if blur > 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), min(blur, 0.9))
    picture = (picture - 110) * rng.uniform(0.82, 1.12) + 110 + rng.normal(0, 7)
    picture *= rng.normal(1, 0.025, 3)
    radius = np.hypot(u / size[0] - 0.5, (v / size[1] - 0.5) * 0.6)
    picture *= 1 - rng.uniform(0, 0.5) * radius[..., None] ** 2
    level = rng.uniform(1.0, 5.0)
    picture += rng.normal(0, 1, picture.shape) * level * np.sqrt(np.clip(picture, 20, 255) / 128)
    return np.clip(picture, 0, 255).astype(np.uint8)


def draw_scene(seed, index, size):
    """Scene number `index`: the picture (H, W, 3), uint8 BGR; the label lines; and the camera."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    scene = compose(rng, *size)
    canvas, halos = Canvas(scene.camera), []
    paint_backdrop(scene, canvas, rng)
    things = scene.back_to_front()
    for number, thing in enumerate((o for o in things if o.kind), 1):
        thing.number = number
    for thing in things:
        paint_thing(thing, canvas, scene.light, halos)
    return photograph(canvas, halos, rng), label_lines(things, canvas), scene.camera


# ---------------------------------------------------------------------------------------------- labels and files


def label_lines(things, canvas):
    camera = canvas.camera
    limits = np.array([camera.width, camera.height_px] * 2)
    visible = np.bincount(canvas.ids.ravel(), minlength=256)
    lines, ignored = [], []
    for thing in things:
        if not thing.number or not visible[thing.number]:
            continue
        box = np.clip(thing.box, 0, limits)
        truncation = 1 - np.prod(box[2:] - box[:2]) / np.prod(thing.box[2:] - thing.box[:2])
        # the highest point of a lorry may lie beyond the border that cuts it
        box = np.clip(box, np.tile(thing.inside[:2], 2), np.tile(thing.inside[2:], 2))
        width, height = box[2:] - box[:2]
        share, area = visible[thing.number] / thing.pixels, visible[thing.number] / SUPERSAMPLING**2
        if thing.kind == "DontCare" or share < MIN_VISIBLE or area < MIN_PIXELS or height < MIN_HEIGHT:
            if width > 0.5 and height > 0.5:
                ignored.append(box)
            continue
        occlusion = sum(share < level for level in OCCLUSION_LEVELS)
        x, y, z = thing.location
        alpha = (thing.rotation_y - np.arctan2(x, z) + np.pi) % (2 * np.pi) - np.pi
        length, tall, wide = thing.model.size
        numbers = (alpha, *box, tall, wide, length, x, y, z, thing.rotation_y)
        lines.append(f"{thing.kind} {truncation:.2f} {occlusion} " + " ".join(f"{n:.2f}" for n in numbers))
    lines += [
        "DontCare -1 -1 -10 {:.2f} {:.2f} {:.2f} {:.2f} -1 -1 -1 -1000 -1000 -1000 -10".format(*b)
        for b in merge(ignored)
    ]
    return lines


def merge(boxes):
    """Unite boxes that overlap until none do."""
    boxes = [box.copy() for box in boxes]
    merged = True
    while merged:
        merged = False
        for i, j in combinations(range(len(boxes)), 2):
            if (np.maximum(boxes[i][:2], boxes[j][:2]) < np.minimum(boxes[i][2:], boxes[j][2:])).all():
                other = boxes.pop(j)
                boxes[i] = np.concatenate([np.minimum(other[:2], boxes[i][:2]), np.maximum(other[2:], boxes[i][2:])])
                merged = True
                break
    return boxes


def calibration(camera):
    """The eight matrices of KITTI's calib files. Left and right camera, no rectification, a laser scanner on top."""
    rows = {}
    for name, shift in (("P0", 0), ("P1", BASELINE), ("P2", 0), ("P3", BASELINE)):
        rows[name] = [camera.focal, 0, camera.cx, -camera.focal * shift, 0, camera.focal, camera.cy, 0, 0, 0, 1, 0]
    rows["R0_rect"] = [1, 0, 0, 0, 1, 0, 0, 0, 1]
    rows["Tr_velo_to_cam"] = [0, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0]
    rows["Tr_imu_to_velo"] = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    return "".join(f"{name}: " + " ".join(f"{value:.12e}" for value in row) + "\n" for name, row in rows.items())


def write_scene(index, root, seed, size):
    cv2.setNumThreads(1)
    picture, lines, camera = draw_scene(seed, index, size)
    training = Path(root) / "training"
    if not cv2.imwrite(str(training / "image_2" / f"{index:06d}.png"), picture):
        raise OSError(f"{training}: the image could not be written")
    (training / "label_2" / f"{index:06d}.txt").write_text("".join(line + "\n" for line in lines))
    (training / "calib" / f"{index:06d}.txt").write_text(calibration(camera))


def make(root, train, val, seed, size, jobs):
    """Write the data set into the folder `root`, which appears when all of it is there."""
    root = Path(root)
    arguments = {"version": VERSION, "train": train, "val": val, "seed": seed, "size": list(size)}
    if root.exists():
        manifest = root / MANIFEST
        if manifest.is_file() and json.loads(manifest.read_text()) == arguments:
            print(f"{root}: these {train} + {val} street scenes are there already")
            return
        sys.exit(
            f"error: {root} is there already and is not what these arguments make; remove it or choose another --root"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        for folder in ("image_2", "label_2", "calib"):
            (workplace / "training" / folder).mkdir(parents=True)
        task = partial(write_scene, root=workplace, seed=seed, size=size)
        bar = partial(tqdm, total=train + val, unit="image", desc="street scenes")
        if jobs == 1:
            list(bar(map(task, range(train + val))))
        else:
            with ProcessPoolExecutor(jobs) as pool:
                list(bar(pool.map(task, range(train + val), chunksize=8)))
        splits = workplace / "ImageSets"
        splits.mkdir()
        (splits / "train.txt").write_text("".join(f"{i:06d}\n" for i in range(train)))
        (splits / "val.txt").write_text("".join(f"{i:06d}\n" for i in range(train, train + val)))
        (workplace / MANIFEST).write_text(json.dumps(arguments) + "\n")
        workplace.chmod(0o755)  # mkdtemp lets nobody else in
        workplace.rename(root)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    print(f"{root}: {train} + {val} street scenes")


def parse_size(text):
    try:
        width, height = (int(part) for part in text.split("x"))
    except ValueError:
        width = height = 0
    if min(width, height) < 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT in pixels, at least 32x32, such as 320x96")
    return width, height


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    default_root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / "street_scenes"
    parser.add_argument("--root", type=Path, default=default_root, help="folder to make (default: %(default)s)")
    parser.add_argument("--train", type=int, default=800, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=200, help="validation images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=parse_size, default=(320, 96), help="WIDTHxHEIGHT (default: 320x96)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    args = parser.parse_args()
    make(args.root, args.train, args.val, args.seed, args.size, args.jobs)


if __name__ == "__main__":
    main()
