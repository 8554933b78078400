"""Building blocks of the families' transformers: post-norm layers with deformable attention (arXiv:2010.04159), the
encoder's proposals, the refinement of anchor boxes."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checks import boolean, checked, count
from ..layers import MLP, MultiScaleDeformableAttention, inverse_sigmoid, sine_embed_boxes
from .structures import Memory, Predictions, Queries

# of the constructors of transformers, and of encoders
DIMENSIONS = dict.fromkeys(
    ("num_layers", "embed_dim", "num_heads", "num_levels", "num_points", "feedforward_dim"), count
)
ENCODER = DIMENSIONS | {"activation_checkpointing": boolean}


class ReLU(nn.ReLU):
    """ReLU that works in place only where no gradient is needed.

    The output of a linear layer is a view. If it is changed in place, autograd copies the whole gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=not torch.is_grad_enabled())


class FeedForward(nn.Sequential):
    def __init__(self, embed_dim: int, hidden_dim: int, activation: nn.Module | None = None):
        activation = activation or ReLU()
        super().__init__(nn.Linear(embed_dim, hidden_dim), activation, nn.Linear(hidden_dim, embed_dim))
        for linear in (self[0], self[2]):
            nn.init.xavier_uniform_(linear.weight)


class DeformableEncoderLayer(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, num_levels: int, num_points: int, feedforward_dim: int):
        super().__init__()
        self.self_attn = MultiScaleDeformableAttention(embed_dim, num_heads, num_levels, num_points)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, feedforward_dim)
        self.norm2 = nn.LayerNorm(embed_dim)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, **levels) -> Tensor:
        tokens = self.norm1(tokens + self.self_attn(tokens + position, tokens, reference, **levels))
        return self.norm2(tokens + self.ffn(tokens))


class CheckpointedLayers(nn.Module):
    """Base class of the encoders: layers that may give up their activations (arXiv:1604.06174).

    Args:
        layers: of the encoder.
        activation_checkpointing: keep only the input of each layer in training, and run the layer again in the backward
            pass, with the same random numbers.
    """

    def __init__(self, layers: Iterable[nn.Module], activation_checkpointing: bool):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.activation_checkpointing = activation_checkpointing

    def run(self, layer: nn.Module, *args: Tensor, **kwargs) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *args, use_reentrant=False, **kwargs)
        return layer(*args, **kwargs)


class DeformableEncoder(CheckpointedLayers):
    """Encoder in which each cell attends to a few sampled points on all levels."""

    @checked(**ENCODER)
    def __init__(
        self,
        num_layers: int,
        embed_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        feedforward_dim: int,
        activation_checkpointing: bool = False,
    ):
        layers = (
            DeformableEncoderLayer(embed_dim, num_heads, num_levels, num_points, feedforward_dim)
            for _ in range(num_layers)
        )
        super().__init__(layers, activation_checkpointing)
        self.level_embed = nn.Parameter(torch.randn(num_levels, embed_dim))
        self.embed_dim = embed_dim
        self.num_levels = num_levels

    def forward(self, features: list[Tensor], masks: list[Tensor], positions: list[Tensor]) -> Memory:
        """Encode maps (B, C, H_l, W_l), given padding masks (B, H_l, W_l) and position encodings (B, C, H_l, W_l)."""
        positions = [p + e[:, None, None] for p, e in zip(positions, self.level_embed, strict=True)]
        memory = flatten_levels(features, masks, positions)
        # cell centers in units of the image without padding, scaled to each padded level
        reference = cell_centers(memory)[:, :, None] * memory.valid_ratios[:, None]
        tokens = memory.features
        for layer in self.layers:
            tokens = self.run(
                layer,
                tokens,
                memory.position,
                reference,
                padding_mask=memory.padding_mask,
                spatial_shapes=memory.spatial_shapes,
                level_start_index=memory.level_start_index,
                level_shapes=memory.level_shapes,
            )
        return replace(memory, tokens=tokens)


def flatten_levels(features: list[Tensor], masks: list[Tensor], positions: list[Tensor]) -> Memory:
    """Flatten the input of an encoder into a memory whose tokens are the features.

    Args:
        features, positions: (B, C, H_l, W_l) each.
        masks: (B, H_l, W_l) each, True on padding.
    """
    tokens, position = (torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1) for maps in (features, positions))
    return Memory(
        tokens=tokens,
        features=tokens,
        padding_mask=torch.cat([mask.flatten(1) for mask in masks], 1),
        level_shapes=[tuple(f.shape[-2:]) for f in features],
        valid_ratios=torch.stack([valid_ratio(mask) for mask in masks], 1),
        position=position,
    )


def valid_ratio(mask: Tensor) -> Tensor:
    """Return the fraction of width and height that is not padding, (B, 2), of a padding mask (B, H, W)."""
    _, height, width = mask.shape
    valid = ~mask
    return torch.stack((valid[:, 0].sum(1) / width, valid[:, :, 0].sum(1) / height), -1)


def cell_centers(memory: Memory) -> Tensor:
    """Return the center (x, y) of every cell in units of the image without padding, (B, N, 2)."""
    centers = []
    for (height, width), size in zip(memory.level_shapes, memory.unpadded_sizes().unbind(1), strict=True):
        y, x = torch.meshgrid(
            torch.arange(height, device=size.device) + 0.5,
            torch.arange(width, device=size.device) + 0.5,
            indexing="ij",
        )
        centers.append(torch.stack((x, y), -1).view(1, -1, 2) / size[:, None])
    return torch.cat(centers, 1)


def cell_anchors(memory: Memory) -> tuple[Tensor, Tensor]:
    """Return the initial boxes of a two-stage detector's proposals (Deformable DETR, arXiv:2010.04159, Sec. A.4).

    Returns:
        logits (B, N, 4) of a box (cx, cy, w, h) of size 0.05 * 2^level at every cell; infinite if invalid.
        invalid (B, N, 1), True on padding and where a coordinate lies outside (0.01, 0.99).
    """
    centers = cell_centers(memory)
    shapes = enumerate(memory.level_shapes)
    extent = torch.cat([centers.new_full((h * w, 2), 0.05 * 2**level) for level, (h, w) in shapes])
    anchors = torch.cat((centers, extent.expand_as(centers)), -1)
    invalid = ((anchors <= 0.01) | (anchors >= 0.99)).any(-1, keepdim=True) | memory.padding_mask[..., None]
    # with an infinite logit the box does not depend on the head's output
    return anchors.logit().masked_fill(invalid, float("inf")), invalid


def encoder_proposals(
    memory: Memory, proj: nn.Module, norm: nn.Module, class_head: nn.Module, box_head: nn.Module
) -> Predictions:
    """Predict a class and a box at every cell of the memory, as one layer (1, B, N, ...)."""
    anchors, invalid = cell_anchors(memory)
    tokens = norm(proj(memory.tokens.masked_fill(invalid, 0)))
    return Predictions(class_head(tokens)[None], (box_head(tokens) + anchors).sigmoid()[None])


def top_proposals(proposals: Predictions, scores: Tensor, count: int) -> Predictions:
    """Select the proposals of the `count` highest scores (B, N), or all if there are fewer."""
    best = scores.topk(min(count, scores.shape[1])).indices[None, ..., None]
    return Predictions(*(x.gather(2, best.expand(-1, -1, -1, x.shape[-1])) for x in proposals))


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
            memory.level_shapes,
        )
        x = self.norm2(x + attended)
        return self.norm3(x + self.ffn(x))


class AnchorDecoder(nn.Module):
    """Decoder that refines anchor boxes layer by layer. Subclasses implement `attend`.

    A layer's input boxes are detached, but gradients flow from its predicted boxes into the previous layer: "look
    forward twice" (DINO, arXiv:2203.03605, Sec. 3.5), which DAB-DETR's implementation does too.

    Args:
        layers: used by `attend`.
        embed_dim: width C of the queries.
    """

    def __init__(self, layers: Iterable[nn.Module], embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(embed_dim)
        self.reference_head = MLP(2 * embed_dim, embed_dim, embed_dim, 2)
        for linear in self.reference_head.layers:
            nn.init.xavier_uniform_(linear.weight)

    def attend(self, index: int, x: Tensor, reference: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """Update the queries' content (B, Q, C) at boxes (B, Q, 4) with layer `index`.

        Args:
            mask: (B * heads, Q, Q) from `Queries.attention_mask`.
        """
        raise NotImplementedError

    def forward(
        self, memory: Memory, queries: Queries, class_heads: Sequence[nn.Module], box_heads: Sequence[nn.Module]
    ) -> Predictions:
        """Return the predictions of every layer, given one class head and one box head per layer."""
        mask = queries.attention_mask(self.num_heads)
        x, reference = queries.content, queries.reference
        box_reference = reference
        all_logits, all_boxes = [], []
        for index, (class_head, box_head) in enumerate(zip(class_heads, box_heads, strict=True)):
            x = self.attend(index, x, reference, memory, mask)
            normed = self.norm(x)
            all_logits.append(class_head(normed))
            all_boxes.append((box_head(normed) + inverse_sigmoid(box_reference)).sigmoid())
            # refined from the tokens before the norm, as in the reference implementations
            box_reference = (box_head(x) + inverse_sigmoid(reference)).sigmoid()
            reference = box_reference.detach()
        return Predictions(torch.stack(all_logits), torch.stack(all_boxes))


class DeformableDecoder(AnchorDecoder):
    """Deformable attention around anchor boxes, which also give each layer's position encoding."""

    @checked(**DIMENSIONS)
    def __init__(
        self, num_layers: int, embed_dim: int, num_heads: int, num_levels: int, num_points: int, feedforward_dim: int
    ):
        layers = (
            DeformableDecoderLayer(embed_dim, num_heads, num_levels, num_points, feedforward_dim)
            for _ in range(num_layers)
        )
        super().__init__(layers, embed_dim, num_heads)

    def attend(self, index: int, x: Tensor, reference: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        level_reference = reference[:, :, None] * memory.valid_ratios.repeat(1, 1, 2)[:, None]
        encoded = sine_embed_boxes(level_reference[:, :, 0], x.shape[-1] // 2)
        return self.layers[index](x, self.reference_head(encoded), level_reference, memory, mask)
