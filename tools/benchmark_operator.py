#!/usr/bin/env python
"""Times multi-scale deformable attention on the CPU: the compiled operator and `grid_sample`, in turns.

Prints a table of medians and their ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from detectron2.config import LazyConfig, instantiate
from tabulate import tabulate
from torch import Tensor

from clockdistill.errors import UserError
from clockdistill.layers import attention, extension, ms_deform_attn
from clockdistill.layers.ms_deform_attn import by_grid_sample

LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))  # of an image of 800x1067 at strides 8 to 64: 17,821 cells
HEADS, CHANNELS, POINTS = 8, 32, 4
DETECTOR = "projects/CLoCKDistill/configs/common/models/dino.py"
IMAGE = (375, 1242)
SPREAD = 2  # of sampling points around their reference, in cells: about where a trained model looks


def arguments(batch: int, queries: int | None, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Random arguments; without a number of queries one for every cell, as in an encoder."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor(LEVELS)
    sizes = shapes.prod(1)
    if queries is None:
        references = torch.cat([cell_centres(*shape) for shape in LEVELS])
    else:
        references = torch.rand(queries, 2, generator=generator)
    shape = (batch, len(references), HEADS, len(LEVELS), POINTS)
    value = torch.randn(batch, int(sizes.sum()), HEADS, CHANNELS, generator=generator)
    offsets = torch.randn(*shape, 2, generator=generator) * SPREAD / shapes.flip(-1)[:, None]
    weights = torch.randn(*shape[:3], len(LEVELS) * POINTS, generator=generator).softmax(-1).view(shape)
    floats = [x.to(device, dtype) for x in (value, references[:, None, None, None] + offsets, weights)]
    return [floats[0], shapes, sizes.cumsum(0) - sizes, *floats[1:]]


def cell_centres(height: int, width: int) -> Tensor:
    """(height * width, 2), (x, y) in [0, 1]"""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack((x, y), -1).flatten(0, 1)


def seconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(sides: list[Callable[[], object]], rounds: int, device: str) -> list[float]:
    """Median seconds of each side; one round before them warms up."""
    times = [[seconds(side, device) for side in sides] for _ in range(rounds + 1)]
    return [statistics.median(side) for side in zip(*times[1:], strict=True)]


def forward(function: Callable[..., Tensor], args: list[Tensor]) -> Callable[[], Tensor]:
    def run():
        with torch.no_grad():
            return function(*args)

    return run


def forward_and_backward(function: Callable[..., Tensor], args: list[Tensor]) -> Callable[[], object]:
    leaves = [x.detach().requires_grad_() if x.is_floating_point() else x for x in args]
    floats = [x for x in leaves if x.is_floating_point()]
    grad = torch.ones(args[0].shape[0], args[3].shape[1], HEADS * CHANNELS).to(args[0])
    return lambda: torch.autograd.grad(function(*leaves), floats, grad)


def row(name: str, target: float, sides: list[float]) -> list:
    ours, theirs = sides
    return [name, 1000 * ours, 1000 * theirs, theirs / ours, f">= {target}"]


def cpu_rows(rounds: int) -> list[list]:
    encoder = arguments(1, None, torch.float32, "cpu")
    decoder = arguments(1, 900, torch.float32, "cpu")
    functions = (ms_deform_attn, by_grid_sample)
    rows = [
        row("forward", 6, in_turns([forward(f, encoder) for f in functions], rounds, "cpu")),
        row("forward, backward", 4, in_turns([forward_and_backward(f, encoder) for f in functions], rounds, "cpu")),
        row("the same, 900 queries", 2, in_turns([forward_and_backward(f, decoder) for f in functions], rounds, "cpu")),
    ]
    model = instantiate(LazyConfig.load(DETECTOR).model).eval()
    images = [dict(image=torch.randint(256, (3, *IMAGE), dtype=torch.uint8), height=IMAGE[0], width=IMAGE[1])]

    def detect(function):
        def run():
            attention.ms_deform_attn = function
            with torch.no_grad():
                model(images)

        return run

    name = f"DINO R-50, {IMAGE[0]}x{IMAGE[1]}, inference"
    return [*rows, row(name, 1.8, in_turns([detect(f) for f in functions], rounds, "cpu"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="of which the median counts (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if not extension.has_kernel("cpu"):
        raise UserError(f"there is nothing to compare: {extension.describe('cpu')}")
    print(f"CPU, {args.threads} threads, float32, {extension.describe('cpu')}, torch {torch.__version__}\n")
    headers = ["", "ms", "ms by grid_sample", "ratio", "target"]
    print(tabulate(cpu_rows(args.rounds), headers, tablefmt="pipe", floatfmt=("", ".0f", ".0f", ".1f")))


if __name__ == "__main__":
    main()
