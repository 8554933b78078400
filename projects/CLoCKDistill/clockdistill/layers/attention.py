"""Multi-scale deformable attention as a module (Deformable DETR, arXiv:2010.04159, Eq. 3)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from .ms_deform_attn import ms_deform_attn


class Attended(NamedTuple):
    """The points that queries attend to in a memory, over all heads.

    Cross-attention modules compute it in a separate method, `attended`, which takes the arguments of `forward`, so that
    `forward` does not pay for it.

    Attributes:
        points: (B, Q, levels, P, 2), (x, y) in [0, 1] of the padded level.
        weights: (B, Q, levels, P), which sum to one per query.
        is_dense: whether the points are the centers of all cells, in row-major order.
    """

    points: Tensor
    weights: Tensor
    is_dense: bool


class MultiScaleDeformableAttention(nn.Module):
    """Let every query attend to a few points around its reference on each level of the memory.

    Args:
        embed_dim: channels of queries and values, a multiple of num_heads.
        num_points: sampling points per head and level.
    """

    def __init__(self, embed_dim: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        if embed_dim % num_heads:
            raise UserError(f"embed_dim {embed_dim} must be a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(embed_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Point each head in its own direction, at growing distances and with equal weights (Sec. A.4)."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1)
        offsets = direction[:, None, None] * distance[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        for parameter in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(parameter)
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
        level_shapes: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """
        Args:
            query: (B, Q, C), with position encoding.
            value: (B, N, C), the tokens of the memory.
            reference: (B, Q, levels, 2 or 4), points (x, y) or boxes (cx, cy, w, h) in [0, 1] of the padded level.
            padding_mask: (B, N), True on padding.
            spatial_shapes, level_start_index: as in `ms_deform_attn`.
            level_shapes: the spatial shapes as Python numbers; only used in exported models.

        Returns:
            (B, Q, C)
        """
        value = self.value_proj(value).masked_fill(padding_mask[..., None], 0)
        value = value.view(*value.shape[:2], self.num_heads, -1)
        locations, weights = self.sample(query, reference, spatial_shapes)
        return self.output_proj(ms_deform_attn(value, spatial_shapes, level_start_index, locations, weights))

    def sample(self, query: Tensor, reference: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, Tensor]:
        """Return locations (B, Q, heads, levels, points, 2) and weights, which sum to one over levels and points."""
        B, Q, _ = query.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        offsets = self.sampling_offsets(query).view(B, Q, heads, levels * points * 2)
        weights = self.attention_weights(query).view(B, Q, heads, levels * points)
        weights = weights.softmax(-1).view(B, Q, heads, levels, points)
        center = repeat_points(reference[..., :2], points)
        if reference.shape[-1] == 2:
            # the reference is in float32, which holds any size exactly; non_blocking avoids a GPU synchronization
            sizes = spatial_shapes.flip(-1).to(reference, non_blocking=True)
            locations = center + offsets / sizes[:, None].expand(-1, points, -1).flatten()
        else:
            locations = center + offsets / points * repeat_points(reference[..., 2:], points) * 0.5
        locations = locations.view(B, Q, heads, levels, points, 2)
        return locations, weights

    def attended(
        self,
        query: Tensor,
        value: Tensor,
        reference: Tensor,
        padding_mask: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        level_shapes: Sequence[tuple[int, int]] | None = None,
    ) -> Attended:
        """Return the sampling points of all heads, with their weights."""
        locations, weights = self.sample(query, reference, spatial_shapes)
        # (B, Q, levels, heads * points, ...)
        points, weights = locations.transpose(2, 3).flatten(3, 4), weights.transpose(2, 3).flatten(3, 4)
        return Attended(points, weights / self.num_heads, is_dense=False)


def repeat_points(x: Tensor, points: int) -> Tensor:
    """Repeat (B, Q, levels, 2) for all points, as (B, Q, 1, levels * points * 2).

    On a CPU, arithmetic on such rows is several times faster than with a last dimension of 2.
    """
    return x[:, :, None, :, None].expand(-1, -1, -1, -1, points, -1).flatten(3)


@contextmanager
def no_fused_attention() -> Iterator[None]:
    """Disable the fused inference kernel of `nn.MultiheadAttention`, which fvcore and exporters cannot look into."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)
