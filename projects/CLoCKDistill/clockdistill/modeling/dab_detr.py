"""DAB-DETR: dynamic anchor boxes are better queries for DETR (arXiv:2201.12329), on one level."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import checked, count, not_negative
from ..layers import MLP, Attended, sine_embed_boxes
from .detector import Detector, make_box_head, make_class_head
from .structures import Memory, Predictions, Queries
from .transformer import DIMENSIONS, ENCODER, AnchorDecoder, CheckpointedLayers, FeedForward, flatten_levels


class DABDETR(Detector):
    """Dense attention in the encoder; learned anchor boxes as queries, refined layer by layer, whose width and height
    modulate the cross-attention. All layers share their heads.

    Args:
        num_queries: number of anchor boxes.
        num_patterns: number of queries with different learned content per anchor (Anchor DETR, arXiv:2109.07107); 0
            means one query without content.
        shared: arguments of `Detector`, with a `DABEncoder` and a `DABDecoder`.
    """

    @checked(num_queries=count, num_patterns=not_negative)
    def __init__(self, *, num_queries: int, num_patterns: int, **shared):
        super().__init__(**shared)
        self.anchors = nn.Embedding(num_queries, 4)  # logits of (cx, cy, w, h)
        with torch.no_grad():
            # centers spread over the image; the reference implementation intends to freeze them but trains them too
            self.anchors.weight[:, :2] = torch.rand(num_queries, 2).logit(eps=1e-3)
        self.patterns = nn.Embedding(num_patterns, self.embed_dim) if num_patterns else None
        self.class_head = make_class_head(self.embed_dim, self.num_classes)
        self.box_head = make_box_head(self.embed_dim)

    def propose(self, memory: Memory) -> Queries:
        """Return object queries: the anchors, once per pattern."""
        boxes = self.anchors.weight.sigmoid()
        if self.patterns is None:
            content = boxes.new_zeros(len(boxes), self.embed_dim)
        else:
            content = self.patterns.weight.repeat_interleave(len(boxes), 0)
            boxes = boxes.repeat(len(self.patterns.weight), 1)
        batch = memory.tokens.shape[0]
        return Queries(content.expand(batch, -1, -1), boxes.expand(batch, -1, -1))

    def decode(self, memory: Memory, queries: Queries) -> Predictions:
        """Return the predictions of all decoder layers."""
        depth = len(self.decoder.layers)
        return self.decoder(memory, queries, [self.class_head] * depth, [self.box_head] * depth)


class DABEncoder(CheckpointedLayers):
    """Encoder on one level in which every cell attends to all cells that are not padding.

    An MLP of the content, shared by all layers, scales the position encoding.
    """

    num_levels = 1

    @checked(**ENCODER)
    def __init__(
        self,
        num_layers: int,
        embed_dim: int,
        num_heads: int,
        feedforward_dim: int,
        activation_checkpointing: bool = False,
    ):
        layers = (DABEncoderLayer(embed_dim, num_heads, feedforward_dim) for _ in range(num_layers))
        super().__init__(layers, activation_checkpointing)
        self.embed_dim = embed_dim
        self.position_scale = MLP(embed_dim, embed_dim, embed_dim, 2)
        init_matrices(self)

    def forward(self, features: list[Tensor], masks: list[Tensor], positions: list[Tensor]) -> Memory:
        """Encode one level, all in lists: map (B, C, H, W), padding mask (B, H, W), position encoding (B, C, H, W)."""
        memory = flatten_levels(features, masks, positions)
        tokens = memory.features
        for layer in self.layers:
            tokens = self.run(layer, tokens, memory.position * self.position_scale(tokens), memory.padding_mask)
        return replace(memory, tokens=tokens)


class DABEncoderLayer(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, feedforward_dim: int):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, feedforward_dim, nn.PReLU())
        self.norm2 = nn.LayerNorm(embed_dim)

    def forward(self, tokens: Tensor, position: Tensor, padding_mask: Tensor) -> Tensor:
        query = tokens + position
        attended, _ = self.self_attn(query, query, tokens, key_padding_mask=padding_mask, need_weights=False)
        tokens = self.norm1(tokens + attended)
        return self.norm2(tokens + self.ffn(tokens))


class DABDecoder(AnchorDecoder):
    """Decoder with anchor boxes as queries (Fig. 2). Self-attention uses an MLP of the boxes' encoding; cross-attention
    uses the encoding of their centers, scaled by the content and modulated by width and height."""

    @checked(**DIMENSIONS)
    def __init__(self, num_layers: int, embed_dim: int, num_heads: int, feedforward_dim: int):
        layers = (
            DABDecoderLayer(embed_dim, num_heads, feedforward_dim, is_first=index == 0) for index in range(num_layers)
        )
        super().__init__(layers, embed_dim, num_heads)
        # unused by the first layer
        self.position_scale = MLP(embed_dim, embed_dim, embed_dim, 2) if num_layers > 1 else None
        self.extent_head = MLP(embed_dim, embed_dim, 2, 2)
        init_matrices(self)

    def attend(self, index: int, x: Tensor, reference: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        half = x.shape[-1] // 2
        encoded = sine_embed_boxes(reference, half)
        center = encoded[..., : 2 * half]
        # the queries of the first layer have no content to scale by
        if index > 0:
            center = center * self.position_scale(x)
        # Eq. 6: similarity along x times w_ref / w, along y times h_ref / h; y comes before x
        # the clamp keeps tiny boxes from overflowing float16
        stretch = self.extent_head(x).sigmoid() / reference[..., 2:].clamp(min=1e-4)
        # for -1, the ONNX exporter of torch overwrites every -1 in the graph
        center = center * stretch.flip(-1).repeat_interleave(half, 2)
        return self.layers[index](x, self.reference_head(encoded), center, memory, mask)


class DABDecoderLayer(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, feedforward_dim: int, is_first: bool):
        super().__init__()
        self.self_attn = SelfAttention(embed_dim, num_heads)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.cross_attn = CrossAttention(embed_dim, num_heads, is_first)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, feedforward_dim, nn.PReLU())
        self.norm3 = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, position: Tensor, center: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        x = self.norm1(x + self.self_attn(x, position, mask))
        x = self.norm2(x + self.cross_attn(x, position, center, memory))
        return self.norm3(x + self.ffn(x))


class SelfAttention(nn.Module):
    """Self-attention of the queries, with separate projections of content and position that are added (Eq. 3)."""

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query_content_proj = nn.Linear(embed_dim, embed_dim)
        self.query_pos_proj = nn.Linear(embed_dim, embed_dim)
        self.key_content_proj = nn.Linear(embed_dim, embed_dim)
        self.key_pos_proj = nn.Linear(embed_dim, embed_dim)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        query = self.query_content_proj(x) + self.query_pos_proj(position)
        key = self.key_content_proj(x) + self.key_pos_proj(position)
        query, key, value = (split_heads(t, self.num_heads) for t in (query, key, self.value_proj(x)))
        allowed = None if mask is None else ~mask.unflatten(0, (-1, self.num_heads))
        return self.out_proj(join_heads(F.scaled_dot_product_attention(query, key, value, allowed)))


class CrossAttention(nn.Module):
    """Cross-attention with content and position concatenated in every head (Eq. 4, as in Conditional DETR,
    arXiv:2108.06152).

    In the first layer, where queries have no content yet, the positions are also added to content and keys.
    """

    def __init__(self, embed_dim: int, num_heads: int, is_first: bool):
        super().__init__()
        self.num_heads = num_heads
        self.query_content_proj = nn.Linear(embed_dim, embed_dim)
        self.query_pos_proj = nn.Linear(embed_dim, embed_dim) if is_first else None
        self.query_centre_proj = nn.Linear(embed_dim, embed_dim)
        self.key_content_proj = nn.Linear(embed_dim, embed_dim)
        self.key_pos_proj = nn.Linear(embed_dim, embed_dim)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, position: Tensor, center: Tensor, memory: Memory) -> Tensor:
        query, key = self.queries_and_keys(x, position, center, memory)
        value = split_heads(self.value_proj(memory.tokens), self.num_heads)
        allowed = ~memory.padding_mask[:, None, None]
        return self.out_proj(join_heads(F.scaled_dot_product_attention(query, key, value, allowed)))

    def queries_and_keys(self, x: Tensor, position: Tensor, center: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return queries (B, heads, Q, 2 C / heads) and keys (B, heads, N, 2 C / heads)."""
        query, query_center = self.query_content_proj(x), self.query_centre_proj(center)
        key, key_pos = self.key_content_proj(memory.tokens), self.key_pos_proj(memory.position)
        if self.query_pos_proj is not None:
            query = query + self.query_pos_proj(position)
            key = key + key_pos
        query = torch.cat([split_heads(t, self.num_heads) for t in (query, query_center)], -1)
        return query, torch.cat([split_heads(t, self.num_heads) for t in (key, key_pos)], -1)

    def attended(self, x: Tensor, position: Tensor, center: Tensor, memory: Memory) -> Attended:
        """Return the centers of all cells and the attention weights, averaged over heads."""
        query, key = self.queries_and_keys(x, position, center, memory)
        similarity = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        weights = similarity.masked_fill(memory.padding_mask[:, None, None], float("-inf")).softmax(-1).mean(1)
        height, width = memory.spatial_shapes[0].tolist()
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        points = torch.stack((x / width, y / height), -1).view(1, 1, 1, -1, 2).to(weights)
        return Attended(points.expand(*weights.shape[:2], -1, -1, -1), weights[:, :, None], is_dense=True)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Reshape (B, Q, C) to (B, heads, Q, C / heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Reshape (B, heads, Q, C / heads) to (B, Q, C)."""
    return x.transpose(1, 2).flatten(2)


def init_matrices(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
