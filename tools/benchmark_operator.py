#!/usr/bin/env python
"""Benchmark the compiled multi-scale deformable attention against `grid_sample`, on the CPU or a GPU.

The two run alternately. Prints a table of median times and their ratios. On a GPU, the table also has the time of the
CUDA kernels of ms-deform-attn or mmcv, if either is installed, and the time in which the GPU copies as many bytes as
the operator must read and write.
"""

import argparse
import importlib
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
REPEATS = 20  # launches per timing on a GPU
COPIED_BYTES = 2**30
# packages with the kernels of Deformable DETR's authors, or descendants of them, which take these arguments and a step
OTHER_KERNELS = {
    "ms-deform-attn": ("functions", "MSDeformAttnFunction"),
    "mmcv": ("mmcv.ops.multi_scale_deform_attn", "MultiScaleDeformableAttnFunction"),
}
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
    grad = args[0].new_ones(args[0].shape[0], args[3].shape[1], HEADS * CHANNELS)
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


def other_kernels() -> dict[str, Callable[..., Tensor]]:
    """Return the installed ones of `OTHER_KERNELS`."""
    found = {}
    for package, (module, name) in OTHER_KERNELS.items():
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, OSError, AttributeError):
            continue
        found[package] = lambda *args, apply=function.apply: apply(*args, 64)
    return found


def gpu_seconds(runs: list[Callable[[], object]], rounds: int) -> list[float]:
    """Time functions on the current GPU alternately; return each one's median, after a warm-up round."""
    times = []
    for _ in range(rounds + 1):
        row = []
        for run in runs:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(REPEATS):
                run()
            end.record()
            end.synchronize()
            row.append(start.elapsed_time(end) / 1000 / REPEATS)
        times.append(row)
    return [statistics.median(column) for column in zip(*times[1:], strict=True)]


def bytes_moved(args: list[Tensor], backward: bool) -> int:
    """Count the bytes of all inputs and outputs, each moved once, of forward or of both passes.

    The gradient of value is accumulated in float32 at least.
    """
    value, _, _, locations, weights = args
    inputs = sum(x.numel() * x.element_size() for x in (value, locations, weights))
    output = args[0].shape[0] * locations.shape[1] * HEADS * CHANNELS * value.element_size()
    gradients = inputs + value.numel() * (max(4, value.element_size()) - value.element_size())
    return inputs + output + backward * (inputs + output + gradients)


def copy_bandwidth(rounds: int) -> float:
    """Measure the bytes that a copy in GPU memory reads and writes per second."""
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    [seconds] = gpu_seconds([partial(torch.empty_like(source).copy_, source)], rounds)
    return 2 * COPIED_BYTES / seconds


def gpu_benchmark(rounds: int) -> tuple[list[list], list[str]]:
    """Return the rows of the table, in microseconds, and their headers."""
    bandwidth, others = copy_bandwidth(rounds), other_kernels()
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for queries in (None, 900):
            value, shapes, starts, locations, weights = arguments(queries)
            args = [value.cuda().to(dtype), shapes, starts, locations.cuda(), weights.cuda().to(dtype)]
            for bind in (forward, forward_and_backward):
                runs = [bind(function, args) for function in (ms_deform_attn, by_grid_sample)]
                if dtype == torch.float32:  # the others read shapes from the GPU, and have no bfloat16
                    runs += [bind(function, [x.cuda() for x in args]) for function in others.values()]
                seconds = gpu_seconds(runs, rounds)
                limit = bytes_moved(args, bind is forward_and_backward) / bandwidth
                name = f"{bind.__name__.replace('_', ' ')}, {len(locations[0])} queries, {str(dtype).split('.')[1]}"
                micro = [1e6 * x for x in (*seconds, *[float("nan")] * (2 + len(others) - len(seconds)), limit)]
                rows.append([name, *micro, seconds[0] / limit])
    headers = ["", "µs", "µs by grid_sample", *(f"µs by {name}" for name in others)]
    return rows, [*headers, f"µs to copy its bytes at {bandwidth / 1e9:.0f} GB/s", "ratio to that"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=natural, default=2, help="number of CPU threads (default: %(default)s)")
    parser.add_argument("--rounds", type=natural, default=7, help="number of timed rounds (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU")
    if not extension.has_kernel(args.device):
        parser.error(f"no compiled operator to benchmark; {extension.describe(args.device)}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.device == "cuda":
        rows, headers = gpu_benchmark(args.rounds)
        print(f"{torch.cuda.get_device_name()}, {extension.describe('cuda')}, torch {torch.__version__}\n")
        print(tabulate(rows, headers, tablefmt="pipe", floatfmt=("", *[".0f"] * (len(headers) - 2), ".1f")))
        return
    print(f"CPU, {args.threads} threads, float32, {extension.describe('cpu')}, torch {torch.__version__}\n")
    headers = ["", "ms", "ms by grid_sample", "ratio"]
    print(tabulate(benchmark(args.rounds), headers, tablefmt="pipe", floatfmt=("", ".0f", ".0f", ".1f")))


if __name__ == "__main__":
    main()
