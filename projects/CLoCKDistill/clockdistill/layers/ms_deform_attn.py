"""Multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, Eq. 3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Weighted sum of values read bilinearly at the sampling locations; outside the map reads zero.

    Args:
        value: (B, N, heads, D), the levels' cells in row-major order, one level after another.
        spatial_shapes: (levels, 2) integers, height and width of every level.
        level_start_index: (levels,) integers, index of every level's first cell in N.
        sampling_locations: (B, Q, heads, levels, points, 2), (x, y) in [0, 1] over the padded level.
        attention_weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * D), of the value's dtype. Half precision is summed in float32, and locations are read in it: on a
        wide map, half precision cannot tell neighbouring cells apart.
    """
    dtype = value.dtype
    if dtype in (torch.float16, torch.bfloat16):
        value, sampling_locations, attention_weights = (
            x.float() for x in (value, sampling_locations, attention_weights)
        )
    B, _, heads, D = value.shape
    Q, levels, points = sampling_locations.shape[1], sampling_locations.shape[3], sampling_locations.shape[4]
    # grid_sample has (-1, -1) at the corner of the corner cell where align_corners is False, as the operator does
    grids = (2 * sampling_locations.to(value.dtype) - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    sampled = []
    shapes, starts = spatial_shapes.tolist(), level_start_index.tolist()
    for level, ((height, width), start) in enumerate(zip(shapes, starts, strict=True)):
        level_value = value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(B * heads, D, height, width)
        sampled.append(F.grid_sample(level_value, grids[level], padding_mode="zeros", align_corners=False))
    weights = attention_weights.to(value.dtype).transpose(1, 2).reshape(B * heads, 1, Q, levels * points)
    output = (torch.cat(sampled, dim=-1) * weights).sum(-1)
    return output.view(B, heads * D, Q).transpose(1, 2).to(dtype)


class MultiScaleDeformableAttention(nn.Module):
    """Attention of every query to a few points around its reference, on every level of the memory.

    Args:
        embed_dim: width of queries and values, a multiple of num_heads.
        num_points: sampled points a head and level.
    """

    def __init__(self, embed_dim: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        if embed_dim % num_heads:
            raise UserError(f"embed_dim {embed_dim} must be a multiple of num_heads {num_heads}: change one of the two")
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(embed_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads look in different directions, points at growing distances, all with equal weight (Sec. A.4)."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1)
        offsets = direction[:, None, None] * distance[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        for zeroed in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(zeroed)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        reference: Tensor,
        padding_mask: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
    ) -> Tensor:
        """
        Args:
            query: (B, Q, C), with its position encoding added.
            value: (B, N, C), the memory's tokens.
            reference: (B, Q, levels, 2 or 4), points (x, y) or boxes (cx, cy, w, h) in [0, 1] of the padded level.
            padding_mask: (B, N), True on padding.
            spatial_shapes, level_start_index: as in `ms_deform_attn`.

        Returns:
            (B, Q, C)
        """
        B, Q, _ = query.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        value = self.value_proj(value).masked_fill(padding_mask[..., None], 0)
        value = value.view(B, value.shape[1], heads, -1)
        offsets = self.sampling_offsets(query).view(B, Q, heads, levels, points, 2)
        weights = self.attention_weights(query).view(B, Q, heads, levels * points)
        weights = weights.softmax(-1).view(B, Q, heads, levels, points)
        reference = reference[:, :, None, :, None]
        if reference.shape[-1] == 2:
            locations = reference + offsets / spatial_shapes.flip(-1)[:, None]
        else:
            locations = reference[..., :2] + offsets / points * reference[..., 2:] * 0.5
        output = ms_deform_attn(value, spatial_shapes, level_start_index, locations, weights)
        return self.output_proj(output)
