#!/usr/bin/env python
"""Benchmark the compiled multi-scale deformable attention against `grid_sample` on the CPU.

The two run alternately. Prints a table of median times and their ratios.
"""

import argparse
import statistics
import timeit
from collections.abc import Callable
from functools import partial

import torch
from detectron2.config import LazyConfig, instantiate
from tabulate import tabulate
from torch import Tensor

from clockdistill.engine.arguments import natural
from clockdistill.layers import attention, extension, ms_deform_attn
from clockdistill.layers.ms_deform_attn import by_grid_sample

LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))  # an 800x1067 image at strides 8 to 64: 17,821 cells
HEADS, CHANNELS, POINTS = 8, 32, 4
DETECTOR = "projects/CLoCKDistill/configs/common/models/dino.py"
IMAGE = (375, 1242)
SPREAD = 2  # standard deviation of sampling offsets in cells, roughly as in a trained model


def arguments(queries: int | None) -> list[Tensor]:
    """Draw random arguments, with one query per cell, as in an encoder, if `queries` is None."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor(LEVELS)
    sizes = shapes.prod(1)
    if queries is None:
        references = torch.cat([cell_centers(*shape) for shape in LEVELS])
    else:
        references = torch.rand(queries, 2, generator=generator)
    shape = (1, len(references), HEADS, len(LEVELS), POINTS)
    value = torch.randn(1, int(sizes.sum()), HEADS, CHANNELS, generator=generator)
    offsets = torch.randn(*shape, 2, generator=generator) * SPREAD / shapes.flip(-1)[:, None]
    weights = torch.randn(*shape[:3], len(LEVELS) * POINTS, generator=generator).softmax(-1).view(shape)
    return [value, shapes, sizes.cumsum(0) - sizes, references[:, None, None, None] + offsets, weights]


def cell_centers(height: int, width: int) -> Tensor:
    """Return (height * width, 2), (x, y) in [0, 1]."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack((x, y), -1).flatten(0, 1)


def forward(function: Callable[..., Tensor], args: list[Tensor]) -> Callable[[], Tensor]:
    return torch.no_grad()(partial(function, *args))


def forward_and_backward(function: Callable[..., Tensor], args: list[Tensor]) -> Callable[[], object]:
    leaves = [x.detach().requires_grad_() if x.is_floating_point() else x for x in args]
    floats = [x for x in leaves if x.is_floating_point()]
    grad = torch.ones(args[0].shape[0], args[3].shape[1], HEADS * CHANNELS)
    return lambda: torch.autograd.grad(function(*leaves), floats, grad)


def compare(name: str, bind: Callable[[Callable], Callable[[], object]], rounds: int) -> list:
    """Time both implementations alternately, after one warm-up round. `bind` turns one into the workload to time."""
    workloads = [bind(function) for function in (ms_deform_attn, by_grid_sample)]
    times = [[timeit.timeit(run, number=1) for run in workloads] for _ in range(rounds + 1)]
    compiled, baseline = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return [name, 1000 * compiled, 1000 * baseline, baseline / compiled]


def benchmark(rounds: int) -> list[list]:
    encoder, decoder = arguments(None), arguments(900)
    model = instantiate(LazyConfig.load(DETECTOR).model).eval()
    images = [dict(image=torch.randint(256, (3, *IMAGE), dtype=torch.uint8), height=IMAGE[0], width=IMAGE[1])]

    def detect(function):
        def run():
            attention.ms_deform_attn = function
            with torch.no_grad():
                model(images)

        return run

    return [
        compare("forward", partial(forward, args=encoder), rounds),
        compare("forward and backward", partial(forward_and_backward, args=encoder), rounds),
        compare("forward and backward, 900 queries", partial(forward_and_backward, args=decoder), rounds),
        compare(f"DINO R-50, {IMAGE[0]}x{IMAGE[1]}, inference", detect, rounds),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=natural, default=2, help="number of CPU threads (default: %(default)s)")
    parser.add_argument("--rounds", type=natural, default=7, help="number of timed rounds (default: %(default)s)")
    args = parser.parse_args()
    if not extension.has_kernel("cpu"):
        parser.error(f"no compiled operator to benchmark; {extension.describe('cpu')}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"CPU, {args.threads} threads, float32, {extension.describe('cpu')}, torch {torch.__version__}\n")
    headers = ["", "ms", "ms by grid_sample", "ratio"]
    print(tabulate(benchmark(args.rounds), headers, tablefmt="pipe", floatfmt=("", ".0f", ".0f", ".1f")))


if __name__ == "__main__":
    main()
