"""Multi-scale deformable attention in standard operators, for exported models.

Both functions compute `layers.ms_deform_attn` in float32 from level shapes that are Python numbers. They take no NaN.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def by_grid_sample(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample every level with `grid_sample`.

    Args:
        value: (B, N, heads, D), the cells of all levels.
        shapes: height and width of every level.
        locations: (B, Q, heads, levels, points, 2), (x, y) in [0, 1] of the padded level.
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * D)
    """
    _, N, heads, D = value.shape
    Q = locations.shape[1]
    maps = value.permute(0, 2, 3, 1).reshape(-1, D, N).split([height * width for height, width in shapes], -1)
    # any location outside the map yields zero; runtimes differ in how they convert huge ones to integers
    grids = (2 * locations - 1).clamp(-3, 3).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    samples = [
        F.grid_sample(level.unflatten(-1, shape), grid, padding_mode="zeros", align_corners=False)
        for level, shape, grid in zip(maps, shapes, grids.unbind(), strict=True)
    ]
    weights = weights.transpose(1, 2).flatten(0, 1).flatten(2)[:, None]
    output = (torch.cat(samples, -1) * weights).sum(-1)
    return output.view(-1, heads * D, Q).transpose(1, 2)


def by_gather(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Gather the four cells around every location, without `grid_sample`. Arguments as in `by_grid_sample`."""
    B, N, heads, D = value.shape
    Q = locations.shape[1]
    sizes = torch.stack([torch.stack([torch.as_tensor(size) for size in shape[::-1]]) for shape in shapes])[:, None]
    areas = sizes.prod(-1)
    starts = areas.cumsum(0) - areas  # (levels, 1)
    # coordinates in cells; the cells of a location that is clamped are all outside the map
    cells = ((locations * sizes - 0.5).clamp(min=-2)).minimum(sizes + 1.0)
    low = cells.floor()
    high_share = cells - low
    rows, factors = [], []
    for dx in (0, 1):
        for dy in (0, 1):
            corner = low + torch.tensor([dx, dy], dtype=low.dtype)
            inside = ((corner >= 0) & (corner < sizes)).all(-1)
            share = torch.stack([high_share[..., i] if d else 1 - high_share[..., i] for i, d in enumerate((dx, dy))])
            x, y = corner.clamp(min=0).minimum(sizes - 1.0).long().unbind(-1)
            rows.append(starts + y * sizes[..., 0] + x)
            factors.append(share.prod(0) * inside * weights)
    # (B, heads, Q, 4 * levels * points)
    rows, factors = (torch.stack(x, -1).transpose(1, 2).flatten(3) for x in (rows, factors))
    table = torch.arange(B * heads).view(B, heads, 1, 1) * N
    values = F.embedding(rows + table, value.transpose(1, 2).reshape(-1, D))
    return (factors[..., None, :] @ values)[..., 0, :].transpose(1, 2).reshape(B, Q, heads * D)


OPERATORS = {"native": by_grid_sample, "gather": by_gather}
