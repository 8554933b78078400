"""Unlabeled objects along the street, some of them easily mistaken for labeled ones. Lengths are in meters."""

import numpy as np

from .colors import CAR_PAINTS, CLOTHES, LEAVES, SKINS, TROUSERS, WALLS, choose, gray, palette, pick
from .people import make_bicycle
from .shapes import Model, add_wheels, cuboid, limb, rectangle

BARK = palette("4a3a2c 5a4a3c 6a6058 3c3430")
POSTS = np.concatenate([CLOTHES, palette("9aa0a4 5a4a3c")])
CAPS = np.concatenate([CLOTHES, SKINS])
SIGNS = palette("c02028 f0f0f0 2050a0 e8c030")
SIGNALS = palette("ff3020 ffb020 30ff70")
BINS = np.concatenate([CAR_PAINTS, palette("3f5a3c 56634a 8a6a4a")])
BIN_SIZES = np.array(
    [(0.6, 1.1, 0.6), (1.4, 1.3, 1.1), (0.5, 1.5, 1.3), (2.6, 2.4, 2.0), (4.0, 2.5, 2.3), (3.2, 1.5, 1.6)]
)
POSTERS = np.concatenate([WALLS, palette("e8e6e0 6f8fae")])
FENCES = palette("5a4a3c 9aa0a4 2a2f3d e8e6e0")
LAMPLIGHT = np.array([170.0, 225, 255])
WINDOW_LIGHT = np.array([130.0, 205, 250])


def make_tree(rng, light):
    height, trunk = rng.uniform(3.5, 9), rng.uniform(0.1, 0.24)
    bark, leaf = pick(rng, BARK), pick(rng, LEAVES)
    crown, spread = height * rng.uniform(0.3, 0.42), rng.uniform(0.9, 2.2)
    limbs = [limb((0, 0, 0), (rng.normal(0, 0.15), crown + 0.4, rng.normal(0, 0.15)), trunk, bark)]
    for _ in range(rng.integers(16, 30)):
        offset = rng.normal(0, 0.5, 3) * (spread, (height - crown) / 2.4, spread)
        p = np.array([0, (height + crown) / 2, 0]) + offset
        radius = rng.uniform(0.3, 0.55) * spread
        limbs.append(limb(p, p, radius, leaf * rng.uniform(0.6, 1.25) + 14 * np.sign(offset[1])))
    return Model(limbs=limbs)


def make_post(rng, light):
    """Bollards, hydrants and stumps, which resemble distant people."""
    height, radius = rng.uniform(0.7, 1.7), rng.uniform(0.08, 0.2)
    color, cap = pick(rng, POSTS), pick(rng, CAPS)
    limbs = [limb((0, radius, 0), (0, height - radius, 0), radius, color)]
    limbs.append(limb((0, height, 0), (0, height, 0), radius * rng.uniform(0.6, 1.0), cap))
    return Model(limbs=limbs)


def make_lamp(rng, light):
    height, color, reach = rng.uniform(4.5, 7.5), gray(rng.uniform(50, 130)), rng.uniform(0.6, 1.6)
    box = cuboid(0.3, 0.12, 0.6, np.array([190.0, 225, 240]) if light.dark else color, height - 0.1)
    if light.dark:
        box.on_sides(box.profile, LAMPLIGHT, 1.3)
        for edge in (0, 3):
            box.on_edge(edge, (-1, 1), (0, 1), LAMPLIGHT, 1.3)
    mast = limb((0, 0, reach), (0, height, reach), 0.07, color)
    return Model([box], [mast, limb((0, height, reach), (0, height, 0), 0.05, color)])


def make_sign(rng, light):
    height, back = rng.uniform(1.9, 2.8), gray(rng.uniform(90, 150))
    color, inner = SIGNS[rng.permutation(len(SIGNS))[:2]]
    wide = rng.uniform(0.3, 0.45)
    panel = cuboid(0.04, 2 * wide, 2 * wide, color, height - wide)
    panel.on_edge(1, (-0.7, 0.7), (0.15, 0.85), inner)
    panel.on_edge(3, (-0.7, 0.7), (0.15, 0.85), inner if rng.random() < 0.5 else back)
    return Model([panel], [limb((-0.05, 0, 0), (-0.05, height, 0), 0.035, back)])


def make_traffic_light(rng, light):
    height = rng.uniform(2.4, 3.2)
    box = cuboid(0.25, 0.85, 0.3, gray(28), height)
    on = rng.integers(3)
    for i, color in enumerate(SIGNALS):
        v = 0.82 - 0.32 * i
        for edge, mid in ((1, v), (3, 1 - v)):
            lamp = color * (1 if i == on else 0.2)
            box.on_edge(edge, (-0.55, 0.55), (mid - 0.11, mid + 0.11), lamp, 0.5 * (i == on))
    return Model([box], [limb((0, 0, 0), (0, height, 0), 0.06, gray(60))])


def make_bin(rng, light):
    """Trash cans, dumpsters, utility boxes, kiosks and sheds: boxes in the colors of vehicles."""
    length, height, width = choose(rng, BIN_SIZES) * rng.uniform(0.85, 1.15, 3)
    color = pick(rng, BINS)
    box = cuboid(length, height, width, color)
    box.on_sides(rectangle(-length / 2, length / 2, height * 0.9, height), color * 0.5)
    for edge, lid in ((1, (0.9, 1)), (3, (0, 0.1))):
        box.on_edge(edge, (-1, 1), lid, color * 0.5)
        if rng.random() < 0.6:
            box.on_edge(edge, (-0.7, 0.7), (0.45, 0.8), gray(45) if rng.random() < 0.6 else color * 1.2)
    if rng.random() < 0.5:
        box.on_sides(rectangle(-length * 0.35, length * 0.3, height * 0.45, height * 0.8), gray(45))
    if rng.random() < 0.3:
        add_wheels(box, (-length * 0.3, length * 0.3), 0.14 * min(length, 2), rng)
    return Model([box])


def make_billboard(rng, light):
    """A billboard with a picture of a car or of people, which is not an object."""
    wide, height, base = rng.uniform(2.4, 4.4), rng.uniform(1.6, 2.6), rng.uniform(0.2, 1.2)
    board = cuboid(0.1, height, wide, gray(110), base)
    ground, paint = pick(rng, POSTERS), pick(rng, CAR_PAINTS)
    for edge in (1, 3):

        def on_board(left, right, low, high, color, edge=edge):
            board.on_edge(edge, (left, right), (low, high) if edge == 1 else (1 - low, 1 - high), color)

        on_board(-0.96, 0.96, 0.05, 0.95, ground)
        if rng.random() < 0.6:
            on_board(-0.75, 0.75, 0.28, 0.52, paint)
            on_board(-0.5, 0.42, 0.52, 0.74, paint * 0.9)
            on_board(-0.42, 0.34, 0.53, 0.69, gray(40))
            for u in (-0.45, 0.45):
                on_board(u - 0.12, u + 0.12, 0.17, 0.38, gray(25))
        else:
            for u in rng.uniform(-0.7, 0.7, 2):
                on_board(u - 0.09, u + 0.09, 0.08, 0.45, pick(rng, TROUSERS))
                on_board(u - 0.12, u + 0.12, 0.42, 0.75, pick(rng, CLOTHES))
                on_board(u - 0.06, u + 0.06, 0.75, 0.9, pick(rng, SKINS))
    return Model([board], [limb((0, 0, w), (0, base, w), 0.06, gray(60)) for w in (-wide / 3, wide / 3)])


def make_hedge(rng, light):
    length, height = rng.uniform(2, 6), rng.uniform(0.7, 1.7)
    leaf = pick(rng, LEAVES)
    box = cuboid(length, height * 0.8, 0.7, leaf * 0.75)
    balls = []
    for _ in range(int(length * 7)):
        p = np.array([rng.uniform(-0.5, 0.5) * length, rng.uniform(0.2, 0.9) * height, rng.uniform(-0.3, 0.3)])
        balls.append(limb(p, p, rng.uniform(0.12, 0.26), leaf * rng.uniform(0.65, 1.2)))
    return Model([box], balls)


def make_fence(rng, light):
    length, height, color = rng.uniform(3, 8), rng.uniform(0.8, 1.4), pick(rng, FENCES)
    places = np.linspace(-length / 2, length / 2, int(length * 2.2))
    limbs = [limb((l, 0, 0), (l, height, 0), 0.03, color) for l in places]
    limbs += [limb((-length / 2, h, 0), (length / 2, h, 0), 0.03, color) for h in (height * 0.35, height * 0.9)]
    return Model(limbs=limbs)


def make_building(rng, light, length, height, depth):
    wall = pick(rng, WALLS)
    body = cuboid(length, height, depth, wall)
    pane = light.horizon * rng.uniform(0.1, 0.35) + 18
    add_windows(rng, light, body, length, height, wall, pane)
    body.on_sides(rectangle(-length / 2, length / 2, height - 0.3, height), wall * 0.7)
    body.on_sides(rectangle(-length / 2, length / 2, 0, 0.5), wall * 0.65)
    for u in (-0.6, 0.0, 0.6):
        for v in np.arange(0.1, 0.85, 0.25):
            body.on_edge(3, (u - 0.12, u + 0.12), (v, v + 0.12), pane)
    return Model([body])


def add_windows(rng, light, body, length, height, wall, pane):
    """Add rows of windows, above a shop or down to the ground."""
    story, column = rng.uniform(2.7, 3.4), rng.uniform(1.6, 3.2)
    wide, tall = column * rng.uniform(0.35, 0.7), story * rng.uniform(0.4, 0.65)
    frame = np.minimum(wall * rng.uniform(0.7, 1.3), 250)
    shop = rng.random() < 0.4
    lefts = np.arange(-length / 2 + column * 0.3, length / 2 - wide - 0.2, column)
    lows = np.arange(story + 0.8 if shop else 0.9, height - tall - 0.3, story)
    corner = np.stack(np.meshgrid(lefts, lows), -1).reshape(-1, 1, 2)
    if len(corner):
        window = corner + rectangle(0, wide, 0, tall)
        body.on_sides(corner + rectangle(-0.1, wide + 0.1, -0.1, tall + 0.1), frame)
        body.on_sides(window, pane)
        lit = rng.random(len(corner)) < (0.35 if light.dark else 0.04)
        if lit.any():
            body.on_sides(window[lit], WINDOW_LIGHT if light.dark else pane * 1.5 + 30)
    if shop:
        glow = WINDOW_LIGHT * rng.uniform(0.5, 0.9) if light.dark else pane * 1.1
        panes = [rectangle(l, l + 2.3, 0.4, 2.6) for l in np.arange(-length / 2 + 0.4, length / 2 - 2.4, 3.0)]
        if panes:
            body.on_sides(panes, glow)
        body.on_sides(rectangle(-length / 2, length / 2, 2.8, 3.3), pick(rng, CAR_PAINTS))


CLUTTER = {
    make_tree: 0.26, make_post: 0.14, make_lamp: 0.08, make_sign: 0.1, make_traffic_light: 0.04,
    make_bin: 0.13, make_billboard: 0.06, make_hedge: 0.08, make_fence: 0.04, make_bicycle: 0.07,
}  # fmt: skip
