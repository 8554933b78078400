"""What a detector costs: parameters, operations and time."""

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn.jit_handles import Handle, get_shape
from torch import nn

# of the multiply-adds at one sampling point and channel: four cells, and the sum's weight
SAMPLE_FLOPS = 4 + 1


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
def latency(models: dict[str, nn.Module], inputs: list[dict], rounds: int = 5) -> dict[str, float]:
    """Median milliseconds that each model takes for one image, from the image in memory to the instances.

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
                    times[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
