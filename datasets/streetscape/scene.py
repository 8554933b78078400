"""Random layouts of a street."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np

from .camera import Camera
from .clutter import (
    CLUTTER,
    make_billboard,
    make_building,
    make_fence,
    make_hedge,
    make_lamp,
    make_sign,
    make_traffic_light,
)
from .colors import WALLS, choose, palette
from .light import Light, make_light
from .people import make_cyclist, make_pedestrian
from .shapes import Model
from .vehicles import make_car, make_trailer, make_truck, make_van

FOCAL = 721.5 / 1242  # of KITTI's cameras, in image widths
MAKERS = {
    "Car": make_car,
    "Van": make_van,
    "Truck": make_truck,
    "Pedestrian": make_pedestrian,
    "Cyclist": make_cyclist,
}
ROAD_COLORS = np.concatenate([palette("6a6c70 585a5e 7d7d7c"), WALLS])


@dataclass
class SceneObject:
    """A model placed on the ground."""

    model: Model
    kind: str | None  # KITTI's type, "DontCare", or None for no label
    location: np.ndarray  # in camera axes
    rotation_y: float
    footprint: tuple  # minimum s, t and maximum s, t
    sunlight: float = 1.0  # share of direct sunlight it receives
    id: int = 0  # on the canvas; 0 for no label
    box: np.ndarray = None  # (4,) extent in pixels, not clipped to the image
    pixels: int = 0  # supersampled pixels inside the image, ignoring occlusion
    inside: np.ndarray = None  # (4,) extent in pixels of the part inside the image

    @cached_property
    def rotation(self):
        """(3, 3) from the model's l, h, w to camera axes; points are rows."""
        c, s = math.cos(self.rotation_y), math.sin(self.rotation_y)
        return np.array([[c, 0, -s], [0, -1, 0], [s, 0, c]])

    def to_camera(self, points):
        return points @ self.rotation + self.location

    @property
    def base(self):
        """(4, 3) corners of the model's base in its own axes."""
        length, _, width = self.model.size
        return np.array([(i * length / 2, 0, j * width / 2) for i, j in product((-1, 1), (-1, 1))])


@dataclass
class Scene:
    camera: Camera
    light: Light
    yaw: float  # of the road relative to the camera
    offset: float  # of the camera from the center line
    half_width: float  # of the road
    sidewalk: float  # its width
    objects: list = field(default_factory=list)

    def to_camera(self, s, t):
        """Point s, t of the road -> camera axes."""
        c, sn = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([(t - self.offset) * c + s * sn, self.camera.height, s * c - (t - self.offset) * sn])

    def place(self, model, s, t, heading=0.0, kind=None, gap=0.25, sunlight=1.0, near=1.3):
        """Place a model unless it would overlap another one or come closer to the camera than `near`."""
        c, sn = abs(math.cos(heading)), abs(math.sin(heading))
        length, _, width = model.size.tolist()
        reach_s, reach_t = (length * c + width * sn) / 2, (length * sn + width * c) / 2
        s0, t0, s1, t1 = footprint = (s - reach_s, t - reach_t, s + reach_s, t + reach_t)
        for a0, b0, a1, b1 in (obj.footprint for obj in self.objects):
            if s0 < a1 + gap and s1 > a0 - gap and t0 < b1 + gap and t1 > b0 - gap:
                return
        rotation = (self.yaw + heading + np.pi / 2) % (2 * np.pi) - np.pi
        obj = SceneObject(model, kind, self.to_camera(s, t), rotation, footprint, sunlight)
        if obj.to_camera(obj.base)[:, 2].min() >= near:
            self.objects.append(obj)

    def back_to_front(self):
        """Sort objects for painting: of two separated by a line along or across the road, the far one comes first."""
        s0, t0, s1, t1 = np.array([obj.footprint for obj in self.objects]).T
        distance = np.array([np.hypot(obj.location[0], obj.location[2]) for obj in self.objects])
        after = s0[:, None] >= s1
        beyond = ((t0[:, None] >= t1) & (t1 >= self.offset)) | ((t1[:, None] <= t0) & (t0 <= self.offset))
        before = (after & ~beyond.T) | (beyond & ~after.T)
        apart = after | after.T | beyond | beyond.T
        before |= ~apart & (distance[:, None] > distance)
        order, blockers = [], before.sum(0)  # how many of the remaining objects must precede each one
        for _ in self.objects:
            # break cycles at the farthest of the objects with the fewest blockers
            free = np.flatnonzero(blockers == blockers.min())
            farthest = free[distance[free].argmax()]
            order.append(self.objects[farthest])
            blockers -= before[farthest]
            blockers[farthest] = 2 * len(self.objects)  # done
        return order


def compose(rng, width, height):
    """Create a random street for an image of `width` x `height` pixels."""
    light = make_light(rng)
    focal = FOCAL * width * rng.uniform(0.92, 1.08)
    middle = width * rng.uniform(0.47, 0.53), height * rng.uniform(0.4, 0.52)
    camera = Camera(width, height, focal, *middle, rng.uniform(1.5, 1.8))
    lanes = choose(rng, [2, 2, 3, 4])
    half = lanes * rng.uniform(2.9, 3.5) / 2 + choose(rng, [0.3, 2.2])
    scene = Scene(camera, light, rng.normal(0, 0.07), half * rng.uniform(0.1, 0.55), half, rng.uniform(1.8, 4.5))
    if rng.random() < 0.15:
        scene.offset = half + scene.sidewalk * rng.uniform(0.2, 0.7)  # the camera stands on the sidewalk
    add_buildings(scene, rng)
    add_traffic(scene, rng, lanes)
    for side in (-1, 1):
        add_parked(scene, rng, side)
    if rng.random() < 0.3:  # a turning or crossing vehicle
        add_vehicle(scene, rng, rng.uniform(9, 35), rng.uniform(-half, half), rng.uniform(-np.pi, np.pi))
    add_pedestrians(scene, rng)
    add_cyclists(scene, rng)
    add_clutter(scene, rng)
    add_distant_objects(scene, rng)
    return scene


def add_buildings(scene, rng):
    for side in (-1, 1):
        if rng.random() < 0.2:
            continue
        setback = scene.half_width + scene.sidewalk + choose(rng, [0.2, 3.0, 7.0])
        s = rng.uniform(-2, 6)
        while s < 110:
            length, depth = rng.uniform(6, 18), rng.uniform(7, 12)
            if rng.random() < 0.82:
                model = make_building(rng, scene.light, length, rng.uniform(4, 14), depth)
                t = side * (setback + depth / 2 + rng.uniform(0, 0.6))
                scene.place(model, s + length / 2, t, near=-99, gap=-1)
            s += length + (rng.uniform(1, 8) if rng.random() < 0.3 else 0)


def random_sunlight(rng):
    return choose(rng, [1.0, 1.0, 0.25])


def add_vehicle(scene, rng, s, t, heading, mix=(0.66, 0.19, 0.15)):
    """Add a car, van or truck with the probabilities `mix`."""
    kind = str(rng.choice(["Car", "Van", "Truck"], p=mix))
    paint = {}
    if kind == "Car" and rng.random() < 0.22:  # camouflaged against the road or a wall
        paint["paint"] = choose(rng, ROAD_COLORS) * rng.uniform(0.8, 1.2)
    model = MAKERS[kind](rng, scene.light, **paint)
    heading += rng.normal(0, 0.03)
    scene.place(model, s, t, heading, kind, sunlight=random_sunlight(rng))


def add_traffic(scene, rng, lanes):
    lane_width = 2 * scene.half_width / lanes
    for lane in range(lanes):
        t = -scene.half_width + (lane + 0.5) * lane_width
        s = rng.uniform(4, 22)
        while s < 60:
            if rng.random() < 0.6:
                add_vehicle(scene, rng, s, t + rng.normal(0, 0.25), 0.0 if t > 0 else np.pi)
            s += rng.uniform(7, 24)


def add_parked(scene, rng, side):
    """Park vehicles parallel or perpendicular to the curb."""
    style = choose(rng, ["none", "parallel", "parallel", "perpendicular"])
    s = rng.uniform(3, 12)
    while style != "none" and s < 55:
        if rng.random() < 0.72:
            if style == "parallel":
                t = side * (scene.half_width - rng.uniform(0.7, 1.1))
                add_vehicle(scene, rng, s, t, choose(rng, [0, np.pi]), (0.72, 0.2, 0.08))
            else:
                t = side * (scene.half_width + 2.4)
                add_vehicle(scene, rng, s, t, choose(rng, [-1, 1]) * np.pi / 2, (0.78, 0.18, 0.04))
        if rng.random() < 0.06:
            scene.place(make_trailer(rng, scene.light), s, side * (scene.half_width - 0.9), choose(rng, [0, np.pi]))
        s += rng.uniform(5.2, 7.5) if style == "parallel" else rng.uniform(2.6, 4.5)


def add_pedestrians(scene, rng):
    """Add pedestrians, alone or in groups, most of them on the sidewalk."""
    half = scene.half_width
    for _ in range(rng.poisson(3.2)):
        s, side = rng.uniform(5, 12) if rng.random() < 0.3 else rng.uniform(8, 42), choose(rng, [-1, 1])
        t = side * (half + rng.uniform(0.4, scene.sidewalk)) if rng.random() < 0.75 else rng.uniform(-half, half)
        heading = choose(rng, [0, np.pi]) + rng.normal(0, 0.3) if abs(t) > half else side * np.pi / 2
        for _ in range(choose(rng, [1, 1, 1, 2, 3])):
            model = make_pedestrian(rng, scene.light, still=rng.random() < 0.3)
            where = s + rng.normal(0, 0.35), t + rng.normal(0, 0.4)
            turned = heading + rng.normal(0, 0.2)
            scene.place(model, *where, turned, "Pedestrian", gap=0.02, sunlight=random_sunlight(rng))


def add_cyclists(scene, rng):
    for _ in range(rng.poisson(1.9)):
        t = choose(rng, [-1, 1]) * (scene.half_width + rng.uniform(-2.2, 1.2))
        heading = (0.0 if t > 0 else np.pi) if rng.random() < 0.65 else rng.uniform(-np.pi, np.pi)
        s = rng.uniform(5, 12) if rng.random() < 0.25 else rng.uniform(8, 40)
        model = make_cyclist(rng, scene.light)
        turned = heading + rng.normal(0, 0.1)
        scene.place(model, s, t, turned, "Cyclist", gap=0.1, sunlight=random_sunlight(rng))


def add_clutter(scene, rng):
    makers, shares = list(CLUTTER), np.array(list(CLUTTER.values()))
    for _ in range(rng.integers(10, 26)):
        make = makers[rng.choice(len(makers), p=shares / shares.sum())]
        t = choose(rng, [-1, 1]) * (scene.half_width + 0.35 + abs(rng.normal(0, scene.sidewalk)))
        heading = 0.0 if make in (make_fence, make_hedge) else choose(rng, [0, np.pi / 2, np.pi, -np.pi / 2])
        if make in (make_sign, make_traffic_light, make_billboard):
            heading = choose(rng, [0, np.pi]) + rng.normal(0, 0.15)
        if make is make_lamp:
            t, heading = math.copysign(scene.half_width + 0.5, t), 0.0 if t > 0 else np.pi
        model = make(rng, scene.light)
        scene.place(model, rng.uniform(5, 55), t, heading, near=2.2)


def add_distant_objects(scene, rng):
    """Add objects too far away to recognize, labeled DontCare."""
    for _ in range(choose(rng, [0, 1, 2])):
        s, t = rng.uniform(62, 85), rng.uniform(-scene.half_width, scene.half_width)
        for _ in range(rng.integers(2, 6)):
            kind = choose(rng, ["Car", "Car", "Van", "Pedestrian"])
            model = MAKERS[kind](rng, scene.light)
            where = s + rng.normal(0, 4), t + rng.normal(0, 2.5)
            scene.place(model, *where, choose(rng, [0, np.pi]), "DontCare")
