"""The module around multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, Eq. 3)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from .ms_deform_attn import ms_deform_attn


class Attended(NamedTuple):
    """Where queries look in a memory, all heads together.

    A module whose output is attention to a memory has a method `attended` that returns this, with the arguments of its
    `forward`, which itself does not spend anything on it.

    Attributes:
        points: (B, Q, levels, P, 2), (x, y) in [0, 1] of the padded level.
        weights: (B, Q, levels, P), with a sum of one for each query.
        is_dense: whether the points are the centres of all the cells of the levels, row by row.
    """

    points: Tensor
    weights: Tensor
    is_dense: bool


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
        value = self.value_proj(value).masked_fill(padding_mask[..., None], 0)
        value = value.view(*value.shape[:2], self.num_heads, -1)
        locations, weights = self.sample(query, reference, spatial_shapes)
        output = ms_deform_attn(value, spatial_shapes, level_start_index, locations, weights)
        return self.output_proj(output)

    def sample(self, query: Tensor, reference: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, Tensor]:
        """Sampling locations (B, Q, heads, levels, points, 2), and weights that sum to one over levels and points."""
        B, Q, _ = query.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        offsets = self.sampling_offsets(query).view(B, Q, heads, levels, points, 2)
        weights = self.attention_weights(query).view(B, Q, heads, levels * points)
        weights = weights.softmax(-1).view(B, Q, heads, levels, points)
        reference = reference[:, :, None, :, None]
        if reference.shape[-1] == 2:
            # float32 tells all widths apart; from the CPU without waiting for the GPU
            sizes = spatial_shapes.flip(-1)[:, None].to(reference, non_blocking=True)
            locations = reference + offsets / sizes
        else:
            locations = reference[..., :2] + offsets / points * reference[..., 2:] * 0.5
        return locations, weights

    def attended(
        self,
        query: Tensor,
        value: Tensor,
        reference: Tensor,
        padding_mask: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
    ) -> Attended:
        """The sampling points of all heads, and their weights."""
        locations, weights = self.sample(query, reference, spatial_shapes)
        # heads beside the points of a level
        points, weights = locations.transpose(2, 3).flatten(3, 4), weights.transpose(2, 3).flatten(3, 4)
        return Attended(points, weights / self.num_heads, is_dense=False)
