"""`torch.ops.clockdistill.ms_deform_attn`: schema, pure-PyTorch kernels, fake kernels and autograd.

The compiled kernels in csrc/ replace the pure-PyTorch ones on the devices they were built for.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import extension
from .precision import at_least_float32

ARGUMENTS = (
    "Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, Tensor attention_weights"
)
HALF = (torch.float16, torch.bfloat16)
BILINEAR, ZEROS = 0, 0  # ATen's values for grid_sample's modes
DEVICES = ("cpu", "cuda")
COMPILED = [device for device in DEVICES if extension.has_kernel(device)]

library = torch.library.Library("clockdistill", "DEF")
library.define(f"ms_deform_attn({ARGUMENTS}) -> Tensor")
library.define(f"ms_deform_attn_backward(Tensor grad_output, {ARGUMENTS}) -> (Tensor, Tensor, Tensor)")


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sum bilinearly sampled values with attention weights (Deformable DETR, arXiv:2010.04159, Eq. 3).

    Locations outside the map, infinite or NaN yield zero.

    Args:
        value: (B, N, heads, D), the cells of all levels in row-major order, one level after another; float16, bfloat16,
            float32 or float64.
        spatial_shapes: (levels, 2) integers, height and width of every level. Keep them on the CPU: on a GPU every call
            synchronizes to read them.
        level_start_index: (levels,) integers, index in N of the first cell of every level; likewise on the CPU.
        sampling_locations: (B, Q, heads, levels, points, 2), (x, y) in [0, 1] of the padded level. Their dtype is
            value's, or float32 if value is half precision, which cannot distinguish adjacent cells of a wide map.
        attention_weights: (B, Q, heads, levels, points), of value's dtype, or float32 if value is half precision.

    Returns:
        (B, Q, heads * D), of value's dtype. Half precision is accumulated in float32.

    Raises:
        RuntimeError: the arguments do not match; the message names the wrong one.
    """
    arguments = value, spatial_shapes, level_start_index, sampling_locations, attention_weights
    if value.device.type in COMPILED or torch.compiler.is_compiling():
        return torch.ops.clockdistill.ms_deform_attn(*arguments)
    # faster than the pure-PyTorch operator, whose backward pass recomputes what autograd saves here
    return by_grid_sample(*arguments)


def by_grid_sample(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Compute `ms_deform_attn` in pure PyTorch, differentiable by autograd, with the same checks."""
    check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    B, _, heads, D = value.shape
    Q = sampling_locations.shape[1]
    maps, grids = to_maps(value, spatial_shapes, level_start_index, sampling_locations)
    weights = at_least_float32(attention_weights).transpose(1, 2).flatten(0, 1).flatten(2)[:, None]
    output = (torch.cat([sample(x, grid) for x, grid in zip(maps, grids)], dim=-1) * weights).sum(-1)
    return output.view(B, heads * D, Q).transpose(1, 2).contiguous().to(value.dtype)


def to_maps(
    value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, sampling_locations: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Return all levels' maps (B * heads, D, H_l, W_l) and sampling grids (levels, B * heads, Q, points, 2)."""
    B, N, heads, D = value.shape
    value = at_least_float32(value)
    maps = [
        value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(B * heads, D, height, width)
        for height, width, start in read_levels(spatial_shapes, level_start_index, N)
    ]
    # with align_corners=False, (-1, -1) is the outer corner of the first cell, like (0, 0) for the operator
    grids = 2 * at_least_float32(sampling_locations) - 1
    # far, infinite and NaN locations: all sample zero, like this one
    grids = torch.where(grids.abs() < 3, grids, -3)
    return maps, grids.permute(3, 0, 2, 1, 4, 5).flatten(1, 2)


def sample(level_map: Tensor, grid: Tensor) -> Tensor:
    """Sample a map as (B * heads, D, Q, points). grid_sample does not support empty maps."""
    if not level_map.shape[2] * level_map.shape[3]:
        return level_map.new_zeros(*level_map.shape[:2], *grid.shape[1:3])
    return F.grid_sample(level_map, grid, padding_mode="zeros", align_corners=False)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def check_arguments(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Raise a RuntimeError that names the wrong argument, with the messages of csrc/checks.h."""
    half = value.dtype in HALF
    require(value.dim() == 4, f"value must be (B, N, heads, D), got {list(value.shape)}")
    require(
        half or value.dtype in (torch.float32, torch.float64),
        f"value must be float16, bfloat16, float32 or float64, got {value.dtype}",
    )
    require(
        spatial_shapes.dim() == 2 and spatial_shapes.shape[1] == 2,
        f"spatial_shapes must be (levels, 2), got {list(spatial_shapes.shape)}",
    )
    levels = spatial_shapes.shape[0]
    require(
        level_start_index.dim() == 1 and level_start_index.shape[0] == levels,
        f"level_start_index must be (levels,) with {levels} levels like spatial_shapes, "
        f"got {list(level_start_index.shape)}",
    )
    for name, indices in (("spatial_shapes", spatial_shapes), ("level_start_index", level_start_index)):
        require(indices.dtype in (torch.int64, torch.int32), f"{name} must be int64 or int32, got {indices.dtype}")
        require(
            indices.device in (value.device, torch.device("cpu")),
            f"{name} must be on {value.device} like value, or on the CPU, got {indices.device}",
        )
    B, _, heads, _ = value.shape
    shape = sampling_locations.shape
    require(
        len(shape) == 6 and shape[0] == B and shape[2] == heads and shape[3] == levels and shape[5] == 2,
        f"sampling_locations must be (B, Q, heads, levels, points, 2) with B = {B}, heads = {heads} and "
        f"levels = {levels}, got {list(shape)}",
    )
    require(
        attention_weights.shape == shape[:5],
        f"attention_weights must be (B, Q, heads, levels, points) like sampling_locations, "
        f"got {list(attention_weights.shape)}",
    )
    for name, floats in (("sampling_locations", sampling_locations), ("attention_weights", attention_weights)):
        require(
            floats.dtype == value.dtype or (half and floats.dtype == torch.float32),
            f"{name} must be {value.dtype} like value{' or float32' * half}, got {floats.dtype}",
        )
        require(floats.device == value.device, f"{name} must be on {value.device} like value, got {floats.device}")


def check_grad_output(grad_output: Tensor, value: Tensor, sampling_locations: Tensor) -> None:
    B, _, heads, D = value.shape
    require(
        grad_output.dim() == 3 and grad_output.shape == (B, sampling_locations.shape[1], heads * D),
        f"grad_output must be (B, Q, heads * D), got {list(grad_output.shape)}",
    )
    for name, preposition in (("dtype", ""), ("device", "on ")):
        expected, got = getattr(value, name), getattr(grad_output, name)
        require(got == expected, f"grad_output must be {preposition}{expected} like value, got {got}")


def read_levels(spatial_shapes: Tensor, level_start_index: Tensor, tokens: int) -> list[tuple[int, int, int]]:
    """Return (height, width, start) of every level, checked to lie within the tokens without overlap."""
    levels, end = [], 0
    for level, ((height, width), start) in enumerate(
        zip(spatial_shapes.tolist(), level_start_index.tolist(), strict=True)
    ):
        require(
            height >= 0 and width >= 0,
            f"spatial_shapes: level {level} has an invalid size of {height} x {width}",
        )
        require(
            start >= end,
            f"level_start_index: level {level} must start at {end} or later, after the previous level, got {start}",
        )
        require(
            start + height * width <= tokens,
            f"level_start_index: level {level} with {height} x {width} cells from {start} on exceeds the "
            f"{tokens} tokens of value",
        )
        levels.append((height, width, start))
        end = start + height * width
    return levels


def backward_in_pytorch(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    check_grad_output(grad_output, value, sampling_locations)
    B, _, heads, D = value.shape
    Q = sampling_locations.shape[1]
    maps, grids = to_maps(value, spatial_shapes, level_start_index, sampling_locations)
    # in the layout of the maps: (B * heads, D, Q, 1), and (levels, B * heads, 1, Q, points)
    grad = at_least_float32(grad_output).reshape(B, Q, heads, D).permute(0, 2, 3, 1).reshape(B * heads, D, Q, 1)
    weights = at_least_float32(attention_weights).permute(3, 0, 2, 1, 4).flatten(1, 2)[:, :, None]
    grad_value = grad.new_zeros(value.shape)
    grad_grids, grad_weights = grids.new_zeros(grids.shape), weights.new_zeros(weights.shape)
    for level, (height, width, start) in enumerate(read_levels(spatial_shapes, level_start_index, value.shape[1])):
        if not maps[level].numel() or not grids[level].numel():
            continue
        grad_weights[level] = (sample(maps[level], grids[level]) * grad).sum(1, keepdim=True)
        grad_map, grad_grids[level] = torch.ops.aten.grid_sampler_2d_backward(
            grad * weights[level], maps[level], grids[level], BILINEAR, ZEROS, False, [True, True]
        )
        grad_map = grad_map.reshape(B, heads, D, height * width).permute(0, 3, 1, 2)
        grad_value[:, start : start + height * width] += grad_map
    levels, points = attention_weights.shape[-2:]
    grad_locations = 2 * grad_grids.view(levels, B, heads, Q, points, 2).permute(1, 3, 2, 0, 4, 5)
    grad_weights = grad_weights.view(levels, B, heads, Q, points).permute(1, 3, 2, 0, 4)
    return (
        grad_value.to(value.dtype),
        grad_locations.contiguous().to(sampling_locations.dtype),
        grad_weights.contiguous().to(attention_weights.dtype),
    )


for device in DEVICES:
    if device not in COMPILED:
        library.impl("ms_deform_attn", by_grid_sample, device.upper())
        library.impl("ms_deform_attn_backward", backward_in_pytorch, device.upper())


@torch.library.register_fake("clockdistill::ms_deform_attn")
def fake_forward(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    B, _, heads, D = value.shape
    return value.new_empty(B, sampling_locations.shape[1], heads * D)


@torch.library.register_fake("clockdistill::ms_deform_attn_backward")
def fake_backward(grad_output, value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    check_grad_output(grad_output, value, sampling_locations)
    return tuple(x.new_empty(x.shape) for x in (value, sampling_locations, attention_weights))


def keep_inputs(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.clockdistill.ms_deform_attn_backward(grad_output, *ctx.saved_tensors)
    return grads[0], None, None, grads[1], grads[2]


def double_backward(ctx, *grads: Tensor) -> None:
    raise NotImplementedError("clockdistill::ms_deform_attn has no second derivative: use by_grid_sample instead")


torch.library.register_autograd("clockdistill::ms_deform_attn", backward, setup_context=keep_inputs)
torch.library.register_autograd("clockdistill::ms_deform_attn_backward", double_backward)
