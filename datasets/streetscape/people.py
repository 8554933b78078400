"""Pedestrians, cyclists and bicycles, made of limbs. Lengths are in meters."""

import numpy as np

from .colors import CAR_PAINTS, CLOTHES, HAIR, SKINS, TROUSERS, gray, palette, pick
from .shapes import Model, disc, limb

HATS = np.concatenate([CAR_PAINTS, palette("1c1612 5a4028")])


def scaled(limbs, scale):
    return Model(limbs=[limb(a.p * scale, a.q * scale, a.radius * scale, a.color) for a in limbs])


def make_pedestrian(rng, light, still=False):
    """An adult or child, walking or standing, perhaps with a coat, bag or hat."""
    scale = rng.uniform(0.62, 0.8) if rng.random() < 0.14 else rng.uniform(0.9, 1.08)
    bulk = rng.uniform(0.85, 1.25)
    top, leg = pick(rng, CLOTHES), pick(rng, TROUSERS)
    skin, hair = pick(rng, SKINS, 0.05), pick(rng, HAIR)
    shoe = gray(rng.uniform(15, 80))
    swing = 0.0 if still else rng.uniform(-0.36, 0.36)
    stoop = rng.uniform(-0.02, 0.1)
    hip, neck = 0.9, 1.42
    limbs = []
    for side, phase in ((-1, swing), (1, -swing)):
        limbs += walking_leg(side * 0.09, phase, hip, bulk, leg, shoe)
        limbs += swinging_arm(side, phase, neck, stoop, bulk, top * 0.92, skin)
    for w in (-0.07 * bulk, 0.07 * bulk):
        limbs.append(limb((0, hip + 0.04, w), (stoop, neck - 0.08, w * 1.35), 0.115 * bulk, top))
    if rng.random() < 0.35:  # coat or skirt
        for w in (-0.05, 0.05):
            limbs.append(limb((0, hip - rng.uniform(0.1, 0.32), w), (0, hip + 0.1, w), 0.12 * bulk, top * 0.95))
    if rng.random() < 0.3:  # bag
        limbs.append(limb((stoop - 0.2, 1.08, 0), (stoop - 0.2, 1.32, 0), 0.13, pick(rng, CLOTHES)))
    limbs.append(limb((stoop, neck, 0), (stoop + 0.02, neck + 0.1, 0), 0.06, skin))
    limbs.append(limb((stoop + 0.03, 1.6, 0), (stoop + 0.03, 1.63, 0), 0.105, skin))
    limbs.append(limb((stoop - 0.01, 1.65, 0), (stoop - 0.01, 1.67, 0), 0.108, hair if rng.random() < 0.8 else top))
    return scaled(limbs, scale)


def walking_leg(w, phase, hip, bulk, color, shoe):
    knee = (phase * 0.55, 0.5, w)
    foot = (phase - 0.08 * abs(phase), 0.07 + 0.1 * max(0, -phase), w)
    return [
        limb((0, hip, w), knee, 0.085 * bulk, color),
        limb(knee, foot, 0.066 * bulk, color),
        limb(foot, (foot[0] + 0.13, foot[1] - 0.02, w), 0.05, shoe),
    ]


def swinging_arm(side, phase, neck, stoop, bulk, color, skin):
    wide = 0.19 * bulk
    shoulder = (stoop, neck - 0.06, side * wide)
    elbow = (stoop - phase * 0.3 - 0.04, 1.1, side * (wide + 0.04))
    hand = (stoop - phase * 0.75 + 0.05, 0.82, side * (wide + 0.05))
    return [
        limb(shoulder, elbow, 0.06 * bulk, color),
        limb(elbow, hand, 0.048 * bulk, color),
        limb(hand, hand, 0.055, skin),
    ]


def bicycle_limbs(rng):
    frame, tire = pick(rng, CAR_PAINTS), gray(rng.uniform(20, 45))
    limbs = []
    for l in (-0.53, 0.53):
        rim = np.insert(disc(l, 0.34, 0.32, 12), 2, 0, -1)
        limbs += [limb(a, b, 0.022, tire) for a, b in zip(rim, np.roll(rim, -1, 0))]
    crank, saddle, head = (-0.05, 0.3, 0), (-0.2, 0.88, 0), (0.37, 0.85, 0)
    back, fore = (-0.53, 0.34, 0), (0.53, 0.34, 0)
    tubes = ((crank, saddle), (crank, head), (saddle, head), (back, saddle), (back, crank), (fore, head))
    limbs += [limb(a, b, 0.024, frame) for a, b in tubes]
    limbs += [limb((0.36, 1.0, -0.24), (0.36, 1.0, 0.24), 0.022, tire), limb(head, (0.36, 1.0, 0), 0.022, frame)]
    limbs.append(limb((-0.3, 0.92, 0), (-0.12, 0.92, 0), 0.045, tire))
    return limbs


def make_bicycle(rng, light):
    return Model(limbs=bicycle_limbs(rng))


def make_cyclist(rng, light):
    top, leg = pick(rng, CLOTHES), pick(rng, TROUSERS)
    skin, scale = pick(rng, SKINS, 0.05), rng.uniform(0.92, 1.08)
    bulk, lean = rng.uniform(0.85, 1.15), rng.uniform(0.05, 0.3)
    limbs = bicycle_limbs(rng)
    hip, neck = np.array([-0.2, 0.98, 0]), np.array([-0.05 + lean, 1.5 - 0.35 * lean, 0])
    phase = rng.uniform(0, 2 * np.pi)
    for side, angle in ((-1, phase), (1, phase + np.pi)):
        foot = np.array([-0.05 + 0.16 * np.cos(angle), 0.32 + 0.16 * np.sin(angle), side * 0.12])
        knee = (hip + foot) / 2 + (0.24, 0.06, side * 0.05)
        start = hip + (0, 0, side * 0.09)
        limbs += [limb(start, knee, 0.085 * bulk, leg), limb(knee, foot, 0.062 * bulk, leg)]
        limbs.append(limb(foot, foot + (0.12, -0.02, 0), 0.048, gray(40)))
        shoulder, hand = neck + (0, -0.07, side * 0.18), np.array([0.36, 1.02, side * 0.22])
        elbow = (shoulder + hand) / 2 + (-0.03, -0.06, side * 0.05)
        limbs += [limb(shoulder, elbow, 0.056 * bulk, top * 0.92), limb(elbow, hand, 0.045, top * 0.92)]
    for w in (-0.07, 0.07):
        limbs.append(limb(hip + (0, 0.02, w), neck + (0, -0.08, w * 1.3), 0.115 * bulk, top))
    if rng.random() < 0.3:  # bag
        limbs.append(limb(hip + (-0.1, 0.2, 0), neck + (-0.18, -0.1, 0), 0.12, pick(rng, CLOTHES)))
    skull, hat = neck + (0.06, 0.17, 0), pick(rng, HATS)
    limbs += [limb(neck, skull, 0.06, skin), limb(skull, skull + (0, 0.02, 0), 0.105, skin)]
    limbs.append(limb(skull + (-0.03, 0.05, 0), skull + (0.02, 0.06, 0), 0.11, hat))
    return scaled(limbs, scale)
