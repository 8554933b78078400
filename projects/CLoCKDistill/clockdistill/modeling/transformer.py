"""Encoder and decoder layers with deformable attention (arXiv:2010.04159), normalised after each residual sum."""

import torch
from torch import Tensor, nn

from ..layers import MLP, MultiScaleDeformableAttention, inverse_sigmoid, sine_embed_boxes
from .structures import Memory, Predictions, Queries


class FeedForward(nn.Sequential):
    def __init__(self, embed_dim: int, hidden_dim: int):
        super().__init__(nn.Linear(embed_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, embed_dim))
        for linear in (self[0], self[2]):
            nn.init.xavier_uniform_(linear.weight)


class DeformableEncoderLayer(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, num_levels: int, num_points: int, feedforward_dim: int):
        super().__init__()
        self.self_attn = MultiScaleDeformableAttention(embed_dim, num_heads, num_levels, num_points)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, feedforward_dim)
        self.norm2 = nn.LayerNorm(embed_dim)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, **levels: Tensor) -> Tensor:
        tokens = self.norm1(tokens + self.self_attn(tokens + position, tokens, reference, **levels))
        return self.norm2(tokens + self.ffn(tokens))


class DeformableEncoder(nn.Module):
    """Levels of features to a memory of the same shape, every cell attending to a few others on all levels."""

    def __init__(
        self, num_layers: int, embed_dim: int, num_heads: int, num_levels: int, num_points: int, feedforward_dim: int
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(embed_dim, num_heads, num_levels, num_points, feedforward_dim)
            for _ in range(num_layers)
        )
        self.level_embed = nn.Parameter(torch.randn(num_levels, embed_dim))

    def forward(self, features: list[Tensor], masks: list[Tensor], positions: list[Tensor]) -> Memory:
        """Maps (B, C, H_l, W_l), padding masks (B, H_l, W_l) and position encodings (B, C, H_l, W_l)."""
        shapes = [f.shape[-2:] for f in features]
        spatial_shapes = torch.tensor(shapes)
        sizes = spatial_shapes.prod(1)
        level_start_index = sizes.cumsum(0) - sizes
        valid_ratios = torch.stack([valid_ratio(mask) for mask in masks], 1)
        flat = torch.cat([f.flatten(2).transpose(1, 2) for f in features], 1)
        padding_mask = torch.cat([mask.flatten(1) for mask in masks], 1)
        position = torch.cat(
            [p.flatten(2).transpose(1, 2) + e for p, e in zip(positions, self.level_embed, strict=True)], 1
        )
        # a cell's centre as a share of the image without padding, then of every padded level in turn
        reference = cell_centres(shapes, valid_ratios)[:, :, None] * valid_ratios[:, None]
        tokens = flat
        for layer in self.layers:
            tokens = layer(
                tokens,
                position,
                reference,
                padding_mask=padding_mask,
                spatial_shapes=spatial_shapes,
                level_start_index=level_start_index,
            )
        return Memory(tokens, flat, padding_mask, spatial_shapes, level_start_index, valid_ratios)


def valid_ratio(mask: Tensor) -> Tensor:
    """Padding mask (B, H, W) to (B, 2): share of width and of height that is not padding."""
    _, height, width = mask.shape
    valid = ~mask
    return torch.stack((valid[:, 0].sum(1) / width, valid[:, :, 0].sum(1) / height), -1)


def cell_centres(shapes: list[tuple[int, int]], valid_ratios: Tensor) -> Tensor:
    """(B, N, 2), centre (x, y) of every cell of every level in units of the image without padding."""
    centres = []
    for (height, width), ratio in zip(shapes, valid_ratios.unbind(1), strict=True):
        y, x = torch.meshgrid(
            torch.arange(height, device=ratio.device) + 0.5,
            torch.arange(width, device=ratio.device) + 0.5,
            indexing="ij",
        )
        grid = torch.stack((x, y), -1).view(1, -1, 2)
        # rounded to whole cells: a centre on the border of what may be a proposal must not move by the last digit
        valid = (ratio * ratio.new_tensor([width, height])).round()
        centres.append(grid / valid[:, None])
    return torch.cat(centres, 1)


class DeformableDecoderLayer(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, num_levels: int, num_points: int, feedforward_dim: int):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.cross_attn = MultiScaleDeformableAttention(embed_dim, num_heads, num_levels, num_points)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, feedforward_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.self_attn.out_proj.weight)

    def forward(
        self, x: Tensor, position: Tensor, reference: Tensor, memory: Memory, attention_mask: Tensor | None
    ) -> Tensor:
        query = x + position
        attended, _ = self.self_attn(query, query, x, attn_mask=attention_mask, need_weights=False)
        x = self.norm1(x + attended)
        attended = self.cross_attn(
            x + position,
            memory.tokens,
            reference,
            memory.padding_mask,
            memory.spatial_shapes,
            memory.level_start_index,
        )
        x = self.norm2(x + attended)
        return self.norm3(x + self.ffn(x))


class DeformableDecoder(nn.Module):
    """Refines anchor boxes layer by layer, each layer's position encoding made of its anchor boxes.

    The boxes that a layer starts from carry no gradient, but those that it is scored by do reach the layer before:
    DINO's "look forward twice" (arXiv:2203.03605, Sec. 3.5).
    """

    def __init__(
        self, num_layers: int, embed_dim: int, num_heads: int, num_levels: int, num_points: int, feedforward_dim: int
    ):
        super().__init__()
        self.num_heads = num_heads
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(embed_dim, num_heads, num_levels, num_points, feedforward_dim)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.reference_head = MLP(2 * embed_dim, embed_dim, embed_dim, 2)
        for linear in self.reference_head.layers:
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, memory: Memory, queries: Queries, class_heads: nn.ModuleList, box_heads: nn.ModuleList
    ) -> Predictions:
        """Predictions of every layer; heads are given a layer each."""
        mask = queries.attention_mask()
        if mask is not None:
            mask = mask.repeat_interleave(self.num_heads, 0)
        ratios = memory.valid_ratios.repeat(1, 1, 2)[:, None]
        x, reference = queries.content, queries.reference
        scored_from = reference
        all_logits, all_boxes = [], []
        for layer, class_head, box_head in zip(self.layers, class_heads, box_heads, strict=True):
            level_reference = reference[:, :, None] * ratios
            encoded = sine_embed_boxes(level_reference[:, :, 0], x.shape[-1] // 2)
            x = layer(x, self.reference_head(encoded), level_reference, memory, mask)
            normed = self.norm(x)
            all_logits.append(class_head(normed))
            all_boxes.append((box_head(normed) + inverse_sigmoid(scored_from)).sigmoid())
            # refined from the tokens before the norm, as the reference implementation does
            scored_from = (box_head(x) + inverse_sigmoid(reference)).sigmoid()
            reference = scored_from.detach()
        return Predictions(torch.stack(all_logits), torch.stack(all_boxes))
