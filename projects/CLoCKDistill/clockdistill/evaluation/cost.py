"""The cost of a detector at inference: parameters, FLOPs, latency and peak memory."""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import detectron2
import numpy as np
import torch
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn.jit_handles import Handle, get_shape
from torch import nn

from .. import __version__
from ..layers import extension, no_fused_attention

# multiply-adds for each sampling point and channel: four for bilinear interpolation, one for the attention weight
SAMPLE_FLOPS = 4 + 1
MEBI = 2**20


def benchmark(models: dict[str, nn.Module], inputs: list[dict], rounds: int) -> dict[str, dict]:
    """Measure the cost of each model on test images, with a batch size of 1.

    Args:
        models: Detectron2 meta-architectures in eval mode, by name.
        inputs: images in the format of the test loader.
        rounds: number of times each model is timed on each image.

    Returns:
        For each model
            parameters: their number;
            image_size: the most frequent (height, width), used for FLOPs and memory;
            gflops: see `count_flops`;
            ms_per_image, ms_per_image_p95: median and 95th percentile of `latency`;
            images_per_second: 1000 / mean latency;
            peak_memory_mib: see `peak_memory`.
        parameters, gflops and peak_memory_mib are None for models without parameters, which run outside of PyTorch.
    """
    times = latency(models, inputs, rounds)
    sizes = [tuple(x["image"].shape[-2:]) for x in inputs]
    size = statistics.mode(sizes)
    x = inputs[sizes.index(size)]
    in_pytorch = {name: count_parameters(model) > 0 for name, model in models.items()}
    return {
        name: dict(
            parameters=count_parameters(model) if in_pytorch[name] else None,
            image_size=list(size),
            gflops=count_flops(model, x) / 1e9 if in_pytorch[name] else None,
            ms_per_image=statistics.median(times[name]),
            ms_per_image_p95=float(np.percentile(times[name], 95)),
            images_per_second=1000 / statistics.mean(times[name]),
            peak_memory_mib=peak_memory(model, x) / MEBI if in_pytorch[name] else None,
        )
        for name, model in models.items()
    }


def environment(device: torch.device) -> dict:
    """The hardware of a device and the versions of the software."""
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
    """The processor's model name on Linux, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def count_flops(model: nn.Module, x: dict) -> int:
    """Count the FLOPs of inference on one image with fvcore, whose convention is one FLOP per multiply-add.

    Convolutions, linear layers, normalization, attention (which fvcore omits) and deformable attention count. The
    latter counts 5 per sampling point and channel, in all implementations. Elementwise operations, softmax, sine
    encodings and top-k do not count, as in fvcore, nor do operations that no output depends on.

    Args:
        model: a Detectron2 meta-architecture in eval mode.
        x: an image in the format of the test loader; see `blank_image`.
    """
    with no_fused_attention(), torch.no_grad():
        analysis = FlopCountAnalysis(model, [x]).set_op_handle(**FLOP_HANDLES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        return analysis.total()


def blank_image(height: int, width: int) -> dict:
    """A black image in the format of a test loader. FLOPs depend on the size of the image alone."""
    return dict(image=torch.zeros(3, height, width, dtype=torch.uint8), height=height, width=width)


def _attention_flops(inputs: list, outputs: list) -> int:
    """`scaled_dot_product_attention`: queries (…, Q, C) times keys (…, K, C), and the result times values."""
    query, _, value = (get_shape(v) for v in inputs[:3])
    keys, value_dim = value[-2:]
    return math.prod(query[:-1]) * keys * (query[-1] + value_dim)


def _deformable_flops(inputs: list, outputs: list) -> int:
    """`ms_deform_attn` with weights (B, Q, heads, levels, points) and values (B, N, heads, D)."""
    value, weights = get_shape(inputs[0]), get_shape(inputs[4])
    return math.prod(weights) * value[3] * SAMPLE_FLOPS


def _grid_sample_flops(inputs: list, outputs: list) -> int:
    """`grid_sample`, the pure PyTorch form of deformable attention, including the product with the weights."""
    return math.prod(get_shape(outputs[0])) * SAMPLE_FLOPS


FLOP_HANDLES: dict[str, Handle] = {
    "aten::scaled_dot_product_attention": _attention_flops,
    "clockdistill::ms_deform_attn": _deformable_flops,
    "aten::grid_sampler": _grid_sample_flops,
}


@torch.no_grad()
def latency(models: dict[str, nn.Module], inputs: list[dict], rounds: int) -> dict[str, list[float]]:
    """Measure the milliseconds from an image in memory to its instances, for each model, image and round.

    The models take turns on each image, so that other load on the machine affects all of them alike.

    Args:
        models: Detectron2 meta-architectures in eval mode, by name.
        inputs: images in the format of the test loader; each is a batch of its own.
        rounds: number of times each model sees each image, after one round of warm-up that is not timed.
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
    """Measure the peak memory of PyTorch's tensors in inference on one image, in bytes.

    It includes the model's parameters and buffers, but not the memory of libraries or the process.

    Args:
        model, x: as in `count_flops`.
    """
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if next(model.parameters()).is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model([x])
        torch.cuda.synchronize()
        return weights + torch.cuda.max_memory_allocated() - before
    return weights + peak_allocation(lambda: model([x]))


def peak_allocation(run: Callable[[], object]) -> int:
    """Measure the peak memory of the PyTorch tensors that a function allocates on the CPU, in bytes."""
    # otherwise a profiler built for GPUs logs a spurious error
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        run()
    # each allocation, negative if freed; the profiler's public tables only have sums
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(np.cumsum([0, *changes]).max())
