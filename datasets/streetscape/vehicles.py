"""Cars, vans, trucks and trailers. Lengths are in meters."""

from typing import NamedTuple

import numpy as np

from .colors import CAR_PAINTS, choose, gray, palette, pick
from .shapes import Model, Solid, add_wheels, cuboid, limb, rectangle

TIRE = gray(20)
TRUCK_CARGO = np.concatenate([CAR_PAINTS, palette("f2f2f0 e8e6e0 c9ccd0 56634a")])
TRAILER_PAINTS = np.concatenate([CAR_PAINTS, palette("f2f2f0 e8e6e0")])

# ranges of length, height and width
CARS = {
    "hatch": ((3.8, 4.4), (1.42, 1.55), (1.68, 1.82)),
    "sedan": ((4.4, 5.0), (1.38, 1.5), (1.72, 1.9)),
    "wagon": ((4.4, 4.9), (1.45, 1.6), (1.75, 1.88)),
    "off-road": ((4.2, 4.9), (1.62, 1.88), (1.8, 1.98)),
    "small": ((2.7, 3.6), (1.45, 1.6), (1.5, 1.68)),
}
CAR_SHARES = (0.3, 0.22, 0.16, 0.22, 0.1)
VANS = {
    "people": ((4.3, 5.1), (1.75, 2.0), (1.78, 1.95)),
    "delivery": ((4.2, 5.3), (1.85, 2.2), (1.8, 2.0)),
    "high": ((5.2, 6.4), (2.35, 2.75), (1.95, 2.1)),
}


class Shape(NamedTuple):
    """Proportions of a car or van."""

    length: float
    height: float
    width: float
    belt: float  # lower edge of the windows, relative to the height
    hood: float  # this and the next three are relative to the length
    trunk: float
    front_rake: float
    back_rake: float
    taper: float  # width of the roof, relative to the width
    rear_window: float  # its lower edge, relative to the back of the upper body
    paneled: bool  # without windows behind the front seats


def draw_size(rng, styles, style):
    """Draw the length, height and width for one of the styles."""
    low, high = np.moveaxis(np.array(list(styles.values())), -1, 0)
    return rng.uniform(low, high)[list(styles).index(style)].tolist()


def make_car(rng, light, paint=None):
    paint = pick(rng, CAR_PAINTS) if paint is None else paint
    style = rng.choice(list(CARS), p=CAR_SHARES)
    size = draw_size(rng, CARS, style)
    belt, hood = rng.uniform(0.56, 0.63), rng.uniform(0.2, 0.29)
    trunk = rng.uniform(0.14, 0.2) if style == "sedan" else 0.01
    rakes = rng.uniform(0.12, 0.17), rng.uniform(0.03, 0.1) if style != "sedan" else 0.12
    return build_car(rng, light, paint, Shape(*size, belt, hood, trunk, *rakes, rng.uniform(0.78, 0.86), 0.86, False))


def make_van(rng, light):
    paint = pick(rng, CAR_PAINTS)
    style = choose(rng, list(VANS))
    size = draw_size(rng, VANS, style)
    belt, hood = rng.uniform(0.5, 0.58), rng.uniform(0.12, 0.19)
    return build_car(rng, light, paint, Shape(*size, belt, hood, 0, 0.11, 0.015, 0.9, 0.6, style != "people"))


def build_car(rng, light, paint, shape):
    """Build a lower body with a hood, and an upper one with the windows."""
    length, height, width = shape[:3]
    floor, belt, nose = rng.uniform(0.16, 0.24), shape.belt * height, shape.belt * height * rng.uniform(0.72, 0.84)
    back, front = -length / 2, length / 2
    cowl = front - shape.hood * length
    lower = Solid(
        [(back + 0.04, floor), (front - 0.04, floor), (front, nose), (front - 0.1, nose + 0.08), (cowl, belt),
         (back + 0.03, belt), (back, belt * 0.8)],
        width / 2, paint,
    )  # fmt: skip

    def narrow(h):
        return width / 2 * (0.97 - (0.97 - shape.taper) * (h - belt) / (height - belt))

    rear = back + shape.trunk * length
    roof = back + (shape.trunk + shape.back_rake) * length, cowl - shape.front_rake * length
    upper = Solid(
        [(rear + 0.03, belt - 0.02), (cowl + 0.02, belt - 0.02), (roof[1], height), (roof[0], height)], narrow, paint
    )
    glaze(rng, light, upper, paint, shape, belt, (rear, cowl), roof)
    trim_car(rng, light, lower, paint, length, (floor, belt, nose), cowl)
    return Model([lower, upper])


def glaze(rng, light, upper, paint, shape, belt, bottom, roof):
    """Add windows to a car's upper body, which spans `bottom` and `roof`, each (back, front)."""
    glass = light.horizon * rng.uniform(0.06, 0.22) + np.array([24.0, 22, 20])
    low, high = belt + 0.02, shape.height - 0.09 - 0.04 * (shape.height - belt)
    share = np.array([low - belt, high - belt]) / (shape.height - belt)
    aft, fore = (a + (b - a) * share + inset for a, b, inset in zip(bottom, roof, (0.14, -0.12)))
    pillar = (fore.mean() + aft.mean()) / 2 + rng.uniform(-0.1, 0.3)
    if shape.paneled:
        aft = np.full(2, fore.mean() - rng.uniform(0.7, 1.1))
    upper.on_sides([(aft[0], low), (fore[0], low), (fore[1], high), (aft[1], high)], glass)
    if not shape.paneled:
        for l in (pillar, (aft.mean() + pillar) / 2 - 0.1):
            upper.on_sides(rectangle(l - 0.04, l + 0.04, low, high), paint * 0.5)
    upper.on_edge(1, (-0.88, 0.88), (0.08, 0.9), glass * 1.15)
    if not (shape.paneled and rng.random() < 0.6):
        upper.on_edge(3, (-0.84, 0.84), (0.16, shape.rear_window), glass * 0.95)
    if shape.paneled and rng.random() < 0.5:  # a firm's stripe or sign on the side
        left, right = 0.3 - shape.length / 2, aft[0] - 0.2
        upper.on_sides(
            [(left, low + 0.05), (right, low + 0.05), (right, high), (left, high - 0.3)], pick(rng, CAR_PAINTS)
        )


def trim_car(rng, light, lower, paint, length, heights, cowl):
    """Add sills, doors, wheels, bumpers, license plates and lamps."""
    floor, belt, nose = heights
    back, front = -length / 2, length / 2
    radius = rng.uniform(0.29, 0.37)
    trim = paint * 0.45 if rng.random() < 0.75 else gray(30)
    sill = floor + 0.14
    lower.on_sides([(back + 0.06, floor), (front - 0.06, floor), (front - 0.03, sill), (back + 0.04, sill)], trim)
    lower.on_sides(rectangle(back + 0.05, cowl, belt - 0.07, belt), np.minimum(paint * 1.15 + 8, 255))
    for l in (cowl - 0.25, cowl - 1.2):
        lower.on_sides(rectangle(l - 0.012, l + 0.012, floor + 0.1, belt), paint * 0.55)
    add_wheels(lower, (back + 0.19 * length, front - 0.19 * length), radius, rng)
    for edge, v in ((1, (0.02, -floor / nose * 0.999)), (6, (0.98, (1 + floor / belt) * 0.999))):
        for sign in (-1, 1):
            lower.on_edge(edge, (sign * 0.72, sign * 0.98), v, TIRE)
    lower.on_edge(1, (-0.96, 0.96), (0, 0.28), trim)
    lower.on_edge(1, (-0.5, 0.5), (0.5, 0.86), gray(rng.uniform(20, 60)))
    lower.on_edge(1, (-0.24, 0.24), (0.3, 0.46), np.array([200.0, 205, 205]))
    lower.on_edge(6, (-0.96, 0.96), (0.7, 1), trim)
    lower.on_edge(6, (-0.26, 0.26), (0.36, 0.6), np.array([190.0, 200, 205]))
    lit = light.dark and rng.random() < 0.7
    add_lamps(lower, lit, lit or rng.random() < 0.2)


def add_lamps(lower, lit_front, lit_back):
    """Add headlights and taillights."""
    white = np.array([225.0, 240, 250]) if lit_front else np.array([190.0, 195, 195])
    red = np.array([40.0, 30, 235]) if lit_back else np.array([38.0, 30, 150])
    for sign in (-1, 1):
        lower.on_edge(1, (sign * 0.62, sign * 0.94), (0.6, 0.92), white, 0.55 * lit_front)
        lower.on_edge(6, (sign * 0.70, sign * 0.97), (1 - 0.92, 1 - 0.6), red, 0.35 * lit_back)


def make_truck(rng, light):
    """A truck with a cargo box, canvas, dump bed or flatbed, or a coach."""
    paint, cargo = pick(rng, CAR_PAINTS), pick(rng, TRUCK_CARGO)
    width, height, length = rng.uniform(2.1, 2.55), rng.uniform(2.7, 3.7), rng.uniform(5.8, 10.5)
    kind = choose(rng, ["box", "box", "canvas", "dump", "flatbed", "coach"])
    deck, glass = rng.uniform(0.75, 1.05), light.horizon * 0.12 + 22
    rear = length / 2 - rng.uniform(1.5, 2.1)
    cab_height = height * (1 if kind == "coach" else rng.uniform(0.72, 0.95))
    cab = make_cab(rear, length / 2, cab_height, width, paint, glass)
    chassis = cuboid(length - 0.3, deck - 0.45, width * 0.8, gray(38), 0.45, -0.1)
    if kind == "coach":
        body = coach_body(-length / 2, rear, deck, height, width, paint, glass)
    else:
        body = cargo_body(rng, kind, (-length / 2, rear - 0.12), deck, height, width, cargo)
    lit = light.dark and rng.random() < 0.7
    radius = rng.uniform(0.42, 0.52)
    add_wheels(chassis, (-length / 2 + 0.16 * length, length / 2 - 0.15 * length), radius, rng)
    if length > 8:
        add_wheels(chassis, (-length / 2 + 0.16 * length + 2.2 * radius,), radius, rng)
    for sign in (-1, 1):
        cab.on_edge(1, (sign * 0.66, sign * 0.92), (0.2, 0.4), np.array([210.0, 225, 235]), 0.6 * lit)
        chassis.on_edge(3, (sign * 0.7, sign), (0.1, 0.9), np.array([40.0, 30, 235 if lit else 140]), 0.4 * lit)
        chassis.on_edge(3, (sign * 0.55, sign), (1, 1 + 0.44 / (deck - 0.45)), gray(18))
        cab.on_edge(1, (sign * 0.62, sign * 0.95), (-0.42, 0.0), gray(18))
    return Model([chassis, body, cab])


def make_cab(rear, front, height, width, paint, glass):
    profile = [(rear, 0.4), (front, 0.4), (front, 1.3), (front - 0.22, height), (rear, height)]
    cab = Solid(profile, width * 0.48, paint)
    cab.on_edge(2, (-0.9, 0.9), (0.12, 0.72), glass)
    door, top = rear + 0.45, height - 0.4
    cab.on_sides([(door, 1.45), (front - 0.16, 1.45), (front - 0.3, top), (door, top)], glass)
    cab.on_edge(1, (-0.6, 0.6), (0.3, 0.75), gray(35))
    cab.on_edge(1, (-0.95, 0.95), (0, 0.2), paint * 0.4)
    return cab


def coach_body(back, rear, deck, top, width, paint, glass):
    length = rear - 0.12 - back
    body = cuboid(length + 0.12, top - deck + 0.3, width * 0.97, paint, deck - 0.3, back + length / 2 + 0.06)
    windows = [rectangle(l, l + 1.1, top - 1.25, top - 0.35) for l in np.arange(back + 0.3, rear - 0.9, 1.25)]
    body.on_sides(windows, glass)
    body.on_edge(3, (-0.85, 0.85), (0.1, 0.5), glass)
    return body


def cargo_body(rng, kind, ends, deck, top, width, color):
    back, front = ends
    height = {"dump": 1.1, "flatbed": 0.35}.get(kind, top - deck)
    top = deck + height
    body = cuboid(front - back, height, width, color, deck, back + (front - back) / 2)
    if kind == "canvas":
        for l in np.arange(back + 0.4, front - 0.18, 0.8):
            body.on_sides(rectangle(l, l + 0.07, deck, top), color * 0.8)
    elif kind == "box" and rng.random() < 0.7:
        sign = rectangle(back + 0.4, front - 0.48, *sorted(rng.uniform(deck + 0.3, top - 0.2, 2)))
        body.on_sides(sign, pick(rng, CAR_PAINTS))
    if kind != "flatbed":
        body.on_edge(3, (-0.03, 0.03), (0, 1), color * 0.5)
        body.on_edge(3, (-0.97, 0.97), (0.94, 1.0), gray(60))
    return body


def make_trailer(rng, light):
    """A parked trailer or camper: wheels, windows and paint of a van, but unlabeled."""
    length, height, width = rng.uniform(2.6, 5.2), rng.uniform(1.3, 2.4), rng.uniform(1.6, 2.2)
    body = cuboid(length, height - 0.45, width, pick(rng, TRAILER_PAINTS), 0.45)
    if rng.random() < 0.6:
        body.on_sides(rectangle(-length * 0.25, length * 0.2, height * 0.6, height * 0.85), gray(50))
        body.on_edge(3, (-0.6, 0.6), (0.25, 0.55), gray(50))
    add_wheels(body, (-0.1 * length,), 0.3, rng)
    for sign in (-1, 1):
        body.on_edge(3, (sign * 0.72, sign * 0.95), (0.8, 0.92), np.array([38.0, 30, 150]))
    return Model([body], [limb((length / 2, 0.45, 0), (length / 2 + 0.9, 0.4, 0), 0.05, gray(40))])
