"""Random numbers that depend only on the seed and on the place in a training, not on what was drawn before.

A resumed training needs no random state: it seeds every step and every image as the interrupted one did.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

# the first number of a key, so that a step and an image with the same numbers differ
STEP, IMAGE = 0, 1


def seed_all(*key: int) -> None:
    """Seed Python, NumPy and torch, on all devices, with a hash of non-negative integers."""
    seed = _hash(key)
    _seed_cpu(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed Python, NumPy and torch on the CPU as `seed_all` does, and restore their states on exit."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        _seed_cpu(_hash(key))
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def _hash(key: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def _seed_cpu(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  Detectron2's augmentations use the global generator
    torch.default_generator.manual_seed(seed)
