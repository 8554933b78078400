"""What a detector costs: parameters, operations, time and memory; and the table that compares several detectors."""

import math
import os
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import detectron2
import numpy as np
import torch
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn.jit_handles import Handle, get_shape
from tabulate import tabulate
from torch import nn

from .. import __version__
from ..layers import extension

# multiply-adds at one sampling point and channel: four cells, and the sum's weight
SAMPLE_FLOPS = 4 + 1
MEBI = 2**20


def benchmark(models: dict[str, nn.Module], inputs: list[dict], rounds: int) -> dict[str, dict]:
    """What each model costs on images of a test set, one at a time.

    Args:
        models: Detectron2 meta-architectures in evaluation mode, by name.
        inputs: images as their test loader gives them.
        rounds: how often every model is timed on every image.

    Returns:
        For every model
            parameters;
            image_size: (height, width) that most of the images have, at which operations and memory are counted;
            gflops: see `count_flops`;
            ms_per_image, ms_per_image_p95: median and 95th percentile of `latency`;
            images_per_second: one after another, as they were timed;
            peak_memory_mib: see `peak_memory`.
    """
    times = latency(models, inputs, rounds)
    sizes = [tuple(x["image"].shape[-2:]) for x in inputs]
    size = statistics.mode(sizes)
    x = inputs[sizes.index(size)]
    return {
        name: dict(
            parameters=count_parameters(model),
            image_size=list(size),
            gflops=count_flops(model, x) / 1e9,
            ms_per_image=statistics.median(times[name]),
            ms_per_image_p95=float(np.percentile(times[name], 95)),
            images_per_second=1000 / statistics.mean(times[name]),
            peak_memory_mib=peak_memory(model, x) / MEBI,
        )
        for name, model in models.items()
    }


def environment(device: torch.device) -> dict:
    """The hardware behind a device, and versions of what ran on it."""
    on_gpu = device.type == "cuda"
    return dict(
        device=torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        threads=torch.get_num_threads(),
        operators=extension.describe(device.type),
        clockdistill=__version__,
        detectron2=detectron2.__version__,
        torch=torch.__version__,
        cuda=torch.version.cuda if on_gpu else None,
        python=platform.python_version(),
    )


def cpu_name() -> str:
    """The processor's model, or at least its architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def count_flops(model: nn.Module, x: dict) -> int:
    """Multiply-adds of inference on one image, by fvcore's count and convention: one multiply-add is one flop.

    Counted are convolutions, linear layers, attention, which fvcore leaves out, norms, and deformable attention: five
    for every point and channel, whichever implementation serves. Left out are elementwise functions and sums, softmax,
    sine encodings and the choice of the best scores, as fvcore does, and what no output depends on.

    Args:
        model: a Detectron2 meta-architecture in evaluation mode.
        x: an image as its test loader gives it; see `blank_image`.
    """
    with _no_fused_modules(), torch.no_grad():
        analysis = FlopCountAnalysis(model, [x]).set_op_handle(**FLOP_HANDLES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        return analysis.total()


def blank_image(height: int, width: int) -> dict:
    """An image as a test loader gives it, all black: what is counted depends on its size alone."""
    return dict(image=torch.zeros(3, height, width, dtype=torch.uint8), height=height, width=width)


def _attention_flops(inputs: list, outputs: list) -> int:
    """Of `scaled_dot_product_attention`: queries (…, Q, C) times keys (…, K, C), and the result times values."""
    query, _, value = (get_shape(v) for v in inputs[:3])
    keys, value_dim = value[-2:]
    return math.prod(query[:-1]) * keys * (query[-1] + value_dim)


def _deformable_flops(inputs: list, outputs: list) -> int:
    """Of `ms_deform_attn`: its weights are (B, Q, heads, levels, points), its values (B, N, heads, D)."""
    value, weights = get_shape(inputs[0]), get_shape(inputs[4])
    return math.prod(weights) * value[3] * SAMPLE_FLOPS


def _grid_sample_flops(inputs: list, outputs: list) -> int:
    """Of `grid_sample`, which is deformable attention in pure PyTorch up to the weights."""
    return math.prod(get_shape(outputs[0])) * SAMPLE_FLOPS


FLOP_HANDLES: dict[str, Handle] = {
    "aten::scaled_dot_product_attention": _attention_flops,
    "clockdistill::ms_deform_attn": _deformable_flops,
    "aten::grid_sampler": _grid_sample_flops,
}


@contextmanager
def _no_fused_modules() -> Iterator[None]:
    """Without the kernels that stand for a whole `nn.MultiheadAttention` at inference: there is nothing to count."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


@torch.no_grad()
def latency(models: dict[str, nn.Module], inputs: list[dict], rounds: int) -> dict[str, list[float]]:
    """Milliseconds that each model takes for one image, from the image in memory to the instances.

    The models take turns on every image, so that whatever else slows the machine down slows all of them alike.

    Args:
        models: Detectron2 meta-architectures in evaluation mode, by name.
        inputs: images as their test loader gives them; each is a batch of its own.
        rounds: how often every model sees every image; a round before them that warms up does not count.
    """
    times = {name: [] for name in models}
    for i in range(rounds + 1):
        for x in inputs:
            for name, model in models.items():
                _synchronize()
                start = time.perf_counter()
                model([x])
                _synchronize()
                if i > 0:
                    times[name].append(1000 * (time.perf_counter() - start))
    return times


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.no_grad()
def peak_memory(model: nn.Module, x: dict) -> int:
    """Bytes of PyTorch's tensors where they are most, in inference on one image: the model's own and those it makes.

    On a GPU and on the CPU alike, what libraries take for themselves is not in it, nor the process.

    Args:
        model, x: as in `count_flops`.
    """
    own = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if next(model.parameters()).is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model([x])
        torch.cuda.synchronize()
        return own + torch.cuda.max_memory_allocated() - before
    # else a profiler that was built for GPUs reports an error where there is none
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        model([x])
    # the allocator's own record, of which the profiler's tables show sums alone; negative where memory is given back
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return own + int(np.cumsum([0, *changes]).max())


def comparison_table(results: dict[str, dict]) -> str:
    """A column a model, and in brackets its difference from the first one.

    Args:
        results: for every model an evaluator's results by task, with `benchmark`'s under that name. Of KITTI's, the
            table has AP by 40 recall points at moderate difficulty, by which the benchmark ranks.
    """
    first = next(iter(results.values()))
    rows = []
    for task, metrics in first.items():
        if task in ("benchmark", "environment"):
            continue
        for key in metrics:
            if "/" not in key or key.endswith("/moderate/AP40"):
                label = key if task == "bbox" else f"{task} {key}"
                rows.append([label, *_cells([r[task].get(key) for r in results.values()], ".1f")])
    if "benchmark" in first:
        costs = [r["benchmark"] for r in results.values()]
        height, width = costs[0]["image_size"]
        for label, key, unit, form in (
            ("parameters (M)", "parameters", 1e6, ".2f"),
            (f"GFLOPs at {height}x{width}", "gflops", 1, ".2f"),
            ("ms per image, median", "ms_per_image", 1, ".1f"),
            ("ms per image, 95th percentile", "ms_per_image_p95", 1, ".1f"),
            ("images per second", "images_per_second", 1, ".1f"),
            ("peak memory (MiB)", "peak_memory_mib", 1, ".0f"),
        ):
            rows.append([label, *_cells([cost[key] / unit for cost in costs], form)])
    alignment = ("left", *("right" for _ in results))
    return tabulate(rows, ["", *results], tablefmt="pipe", disable_numparse=True, colalign=alignment)


def _cells(values: list[float | None], form: str) -> list[str]:
    """COCO has no AP of classes without objects."""
    first, *others = values
    cells = ["-" if first is None else f"{first:{form}}"]
    for value in others:
        difference = "" if None in (first, value) else f" ({value - first:+{form}})"
        cells.append("-" if value is None else f"{value:{form}}{difference}")
    return cells
