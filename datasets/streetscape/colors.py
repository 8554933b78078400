"""Colors in BGR, 0 to 255, as OpenCV expects: float arrays (3,), or (n, 3) for palettes."""

import numpy as np


def palette(codes):
    """'rrggbb rrggbb …' -> (n, 3)."""
    return np.array([[int(code[i : i + 2], 16) for i in (4, 2, 0)] for code in codes.split()], np.float32)


def choose(rng, options):
    """Choose one of the options uniformly, five times as fast as `rng.choice`."""
    return options[rng.integers(len(options))]


def pick(rng, colors, jitter=0.12):
    """Choose one of the colors and vary its brightness and tint a little."""
    color = choose(rng, colors) * rng.uniform(1 - jitter, 1 + jitter) + rng.normal(0, 5, 3)
    return np.minimum(np.maximum(color, 4), 250)


def gray(level):
    return np.full(3, float(level))


CAR_PAINTS = palette(
    "f2f2f0 f2f2f0 c9ccd0 a9adb3 8a8f96 5c6066 3a3d42 1d1f22 1d1f22 7d1f22 b3262b 23406e 2d63a8 6f8fae 2f4a3a 56634a "
    "8b7a5e b9a98a d9c9a0 c7832f 5a2e2a e0c62f"
)
CLOTHES = palette("1c1d22 2a2f3d 3b4a63 5c6b7a 7a2d2f a83a32 3f5a3c 6b7a4a 8a6a4a b8a88a d8d4c8 e8e6e0 c9a02f 4a2f4f")
TROUSERS = palette("1c1d22 23283a 2f3c58 3d3a38 5a5448 7a7264 8f8a80 403028")
SKINS = palette("f0c8a8 d8a888 b07f5c 7d5238 4f3424")
HAIR = palette("1c1612 2e2018 5a4028 a08050 9a9690")
WALLS = palette("c8b8a0 d8d0c0 b09880 a8624a 8f5240 c0a070 9aa0a4 b8bcc0 e0d8c8 7a7068 d0b090 a8b0a0 6a5a50 c89878")
LEAVES = palette("3f5a2a 4f6a30 5f7a3a 35502c 6a7a40 486038 7a7038")
