"""Multi-scale deformable attention in standard operators, for exported models.

The operators compute `layers.ms_deform_attn` in float32 from level shapes that are Python numbers. They take no NaN.
Runtimes spend as much time on moving samples as on computing them. Therefore all levels are sampled at once, from one
map that has them below each other, and coordinates stay interleaved in the order of the projection.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import MultiScaleDeformableAttention
from ..layers.attention import repeat_points

Shapes = Sequence[tuple[int, int]]


class ExportableAttention(nn.Module):
    """`MultiScaleDeformableAttention` with one projection for offsets and weights, in standard operators.

    Args:
        attention: in eval mode.
        operator: one of `OPERATORS`.
        dynamic: whether level shapes are free in a traced graph.
    """

    def __init__(self, attention: MultiScaleDeformableAttention, operator: Callable[..., Tensor], dynamic: bool):
        super().__init__()
        self.operator = operator
        self.dynamic = dynamic
        self.num_heads, self.num_points = attention.num_heads, attention.num_points
        projections = attention.sampling_offsets, attention.attention_weights
        self.widths = [projection.out_features for projection in projections]
        self.sampling = nn.Linear(projections[0].in_features, sum(self.widths))
        self.sampling.weight = nn.Parameter(torch.cat([p.weight for p in projections]), requires_grad=False)
        self.sampling.bias = nn.Parameter(torch.cat([p.bias for p in projections]), requires_grad=False)
        self.value_proj, self.output_proj = attention.value_proj, attention.output_proj

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        reference: Tensor,
        padding_mask: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        level_shapes: Shapes,
    ) -> Tensor:
        """As `MultiScaleDeformableAttention.forward`."""
        if not self.dynamic:
            level_shapes = [(int(height), int(width)) for height, width in level_shapes]
            spatial_shapes = torch.tensor(level_shapes)
        value = self.value_proj(value).masked_fill(padding_mask[..., None], 0)
        offsets, weights = (x.unflatten(-1, (self.num_heads, -1)) for x in self.sampling(query).split(self.widths, -1))
        sizes = spatial_shapes.flip(-1).to(reference)
        center = repeat_points(reference[..., :2] * sizes, self.num_points)
        if reference.shape[-1] == 4:
            offsets = offsets * repeat_points(reference[..., 2:] * sizes * (0.5 / self.num_points), self.num_points)
        # not `unflatten`, after which the ONNX exporter takes the batch size for a constant
        value = value.view(*value.shape[:2], self.num_heads, -1)
        return self.output_proj(self.operator(value, level_shapes, center + offsets, weights.softmax(-1)))


def per_point(levels: Sequence[tuple[float, float]], points: int) -> Tensor:
    """Repeat numbers (x, y) of every level for all points, as (levels * points * 2)."""
    numbers = [x for level in levels for x in level]
    if any(isinstance(x, Tensor) for x in numbers):  # the sizes of a traced graph
        xy = torch.stack([torch.as_tensor(x, dtype=torch.float32) for x in numbers])
    else:
        xy = torch.tensor(numbers, dtype=torch.float32)
    return xy.view(-1, 1, 2).expand(-1, points, -1).flatten()


def clamp_to_levels(cells: Tensor, shapes: Shapes) -> tuple[Tensor, int]:
    """Move cells (..., levels * points * 2) that are far outside of their level next to it; also return `points`."""
    points = int(cells.shape[-1]) // (2 * len(shapes))
    # the cells around such a location are all outside; runtimes differ in how they convert huge numbers to integers
    limits = per_point([(width + 0.5, height + 0.5) for height, width in shapes], points)
    return cells.clamp(min=-0.5).minimum(limits), points


def stack_levels(value: Tensor, shapes: Shapes, width: int) -> Tensor:
    """Put the levels of (B, N, heads, D) below each other, as (B * heads, H, width, D) with zeros around each."""
    levels = value.transpose(1, 2).flatten(0, 1).split([h * w for h, w in shapes], 1)
    maps = [x.unflatten(1, shape) for x, shape in zip(levels, shapes, strict=True)]
    return torch.cat([F.pad(x, (0, 0, 0, width - w, 0, 1)) for x, (_, w) in zip(maps, shapes, strict=True)], 1)


def tops(shapes: Shapes) -> list[int]:
    """Return the row in the map of `stack_levels` where each level starts, and the number of rows."""
    rows = [0]
    for height, _ in shapes:
        rows.append(rows[-1] + height + 1)
    return rows


def by_grid_sample(value: Tensor, shapes: Shapes, cells: Tensor, weights: Tensor) -> Tensor:
    """Sample all levels by one `grid_sample`.

    Args:
        value: (B, N, heads, D), the cells of all levels.
        shapes: height and width of every level.
        cells: (B, Q, heads, levels * points * 2), locations (x, y) in cells of their level, from its upper left corner.
        weights: (B, Q, heads, levels * points).

    Returns:
        (B, Q, heads * D)
    """
    _, _, heads, D = value.shape
    Q = cells.shape[1]
    cells, points = clamp_to_levels(cells, shapes)
    width = shapes[0][1]  # the first level is the finest
    *starts, height = tops(shapes)
    shift = per_point([(-1, start * 2 / height - 1) for start in starts], points)
    grids = cells * per_point([(2 / width, 2 / height)] * len(shapes), points) + shift
    # with queries last, the inner loops over the samples are long
    grids = grids.unflatten(-1, (-1, 2)).permute(0, 2, 3, 1, 4).flatten(0, 1)
    weights = weights.permute(0, 2, 3, 1).flatten(0, 1)[:, None]
    maps = stack_levels(value, shapes, width).permute(0, 3, 1, 2)
    samples = F.grid_sample(maps, grids, padding_mode="zeros", align_corners=False)
    return (samples * weights).sum(2).view(-1, heads * D, Q).transpose(1, 2)


def by_gather(value: Tensor, shapes: Shapes, cells: Tensor, weights: Tensor) -> Tensor:
    """Gather the four cells around every location, without `grid_sample`. Arguments as in `by_grid_sample`."""
    B, N, heads, D = value.shape
    Q = cells.shape[1]
    cells, points = clamp_to_levels(cells, shapes)
    cells = (cells - 0.5).unflatten(-1, (-1, 2))
    sizes = per_point([shape[::-1] for shape in shapes], points).view(-1, 2)
    areas = torch.stack([torch.as_tensor(height * width) for height, width in shapes])
    starts = (areas.cumsum(0) - areas)[:, None].expand(-1, points).flatten()
    low = cells.floor()
    high_share = cells - low
    rows, factors = [], []
    for dx in (0, 1):
        for dy in (0, 1):
            corner = low + torch.tensor([dx, dy], dtype=low.dtype)
            inside = ((corner >= 0) & (corner < sizes)).all(-1)
            share = torch.stack([high_share[..., i] if d else 1 - high_share[..., i] for i, d in enumerate((dx, dy))])
            x, y = corner.clamp(min=0).minimum(sizes - 1.0).long().unbind(-1)
            rows.append(starts + y * sizes[:, 0].long() + x)
            factors.append(share.prod(0) * inside * weights)
    # (B, heads, Q, 4 * levels * points)
    rows, factors = (torch.cat(x, -1).transpose(1, 2) for x in (rows, factors))
    table = torch.arange(B * heads).view(B, heads, 1, 1) * N
    values = F.embedding(rows + table, value.transpose(1, 2).reshape(-1, D))
    return (factors[..., None, :] @ values)[..., 0, :].transpose(1, 2).reshape(B, Q, heads * D)


OPERATORS = {"native": by_grid_sample, "gather": by_gather}
