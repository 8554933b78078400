"""DAB-DETR: dynamic anchor boxes are better queries for DETR (arXiv:2201.12329), on one level."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import MLP, Attended, sine_embed_boxes
from .detector import Detector, make_box_head, make_class_head
from .structures import Memory, Predictions, Queries
from .transformer import AnchorDecoder, FeedForward, flatten_levels


class DABDETR(Detector):
    """Attention of every cell to all others; learnt anchor boxes for queries, refined layer by layer, whose width and
    height stretch the cross-attention to the memory. All layers share their heads.

    Args:
        num_queries: anchor boxes.
        num_patterns: queries of different learnt content at every anchor (Anchor DETR, arXiv:2109.07107); with 0 there
            is one, without content.
        shared: as in `Detector`, with a `DABEncoder` and a `DABDecoder`.
    """

    def __init__(self, *, num_queries: int, num_patterns: int, **shared):
        super().__init__(**shared)
        self.anchors = nn.Embedding(num_queries, 4)  # logits of (cx, cy, w, h)
        with torch.no_grad():
            # centres all over the image; the reference implementation means to freeze them, but trains them too
            self.anchors.weight[:, :2] = torch.rand(num_queries, 2).logit(eps=1e-3)
        self.patterns = nn.Embedding(num_patterns, self.embed_dim) if num_patterns else None
        self.class_head = make_class_head(self.embed_dim, self.num_classes)
        self.box_head = make_box_head(self.embed_dim)

    def propose(self, memory: Memory) -> Queries:
        """Object queries: the anchors, for one pattern after another."""
        boxes = self.anchors.weight.sigmoid()
        if self.patterns is None:
            content = boxes.new_zeros(len(boxes), self.embed_dim)
        else:
            content = self.patterns.weight.repeat_interleave(len(boxes), 0)
            boxes = boxes.repeat(len(self.patterns.weight), 1)
        batch = len(memory.tokens)
        return Queries(content.expand(batch, -1, -1), boxes.expand(batch, -1, -1))

    def decode(self, memory: Memory, queries: Queries) -> Predictions:
        """All decoder layers' answers."""
        depth = len(self.decoder.layers)
        return self.decoder(memory, queries, [self.class_head] * depth, [self.box_head] * depth)


class DABEncoder(nn.Module):
    """One level of features to a memory of the same shape, every cell attending to all that are no padding.

    How much a cell's position counts beside its content is for an MLP of the content to say, the same in all layers.
    """

    num_levels = 1

    def __init__(self, num_layers: int, embed_dim: int, num_heads: int, feedforward_dim: int):
        super().__init__()
        self.embed_dim = embed_dim
        self.layers = nn.ModuleList(DABEncoderLayer(embed_dim, num_heads, feedforward_dim) for _ in range(num_layers))
        self.position_scale = MLP(embed_dim, embed_dim, embed_dim, 2)
        init_matrices(self)

    def forward(self, features: list[Tensor], masks: list[Tensor], positions: list[Tensor]) -> Memory:
        """The map (B, C, H, W), its padding mask (B, H, W) and position encoding (B, C, H, W), each in a list."""
        memory = flatten_levels(features, masks, positions)
        tokens = memory.features
        for layer in self.layers:
            tokens = layer(tokens, memory.position * self.position_scale(tokens), memory.padding_mask)
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
    """Anchor boxes as queries (Fig. 2): their encoding goes into self-attention through an MLP, and that of their
    centres straight into cross-attention, scaled by the content and by width and height."""

    def __init__(self, num_layers: int, embed_dim: int, num_heads: int, feedforward_dim: int):
        layers = (
            DABDecoderLayer(embed_dim, num_heads, feedforward_dim, is_first=index == 0) for index in range(num_layers)
        )
        super().__init__(layers, embed_dim, num_heads)
        self.position_scale = MLP(embed_dim, embed_dim, embed_dim, 2)
        self.extent_head = MLP(embed_dim, embed_dim, 2, 2)
        init_matrices(self)

    def attend(self, index: int, x: Tensor, reference: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        half = x.shape[-1] // 2
        encoded = sine_embed_boxes(reference, half)
        centre = encoded[..., : 2 * half]
        # the queries of the first layer have no content to scale by
        if index > 0:
            centre = centre * self.position_scale(x)
        # Eq. 6: the similarity along x times w_ref / w, and along y times h_ref / h; y comes before x
        # a box below a ten thousandth of the image would overflow float16
        stretch = self.extent_head(x).sigmoid() / reference[..., 2:].clamp(min=1e-4)
        centre = centre * stretch.flip(-1).repeat_interleave(half, -1)
        return self.layers[index](x, self.reference_head(encoded), centre, memory, mask)


class DABDecoderLayer(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, feedforward_dim: int, is_first: bool):
        super().__init__()
        self.self_attn = SelfAttention(embed_dim, num_heads)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.cross_attn = CrossAttention(embed_dim, num_heads, is_first)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, feedforward_dim, nn.PReLU())
        self.norm3 = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, position: Tensor, centre: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        x = self.norm1(x + self.self_attn(x, position, mask))
        x = self.norm2(x + self.cross_attn(x, position, centre, memory))
        return self.norm3(x + self.ffn(x))


class SelfAttention(nn.Module):
    """Attention among queries, content and position projected apart and added (Eq. 3)."""

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
    """Attention of queries to the memory, content and position side by side in every head (Eq. 4, as in Conditional
    DETR, arXiv:2108.06152).

    In the first layer, where queries have no content yet, their position is added to it, and the cells' to theirs.
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

    def forward(self, x: Tensor, position: Tensor, centre: Tensor, memory: Memory) -> Tensor:
        query, key = self.compared(x, position, centre, memory)
        value = split_heads(self.value_proj(memory.tokens), self.num_heads)
        allowed = ~memory.padding_mask[:, None, None]
        return self.out_proj(join_heads(F.scaled_dot_product_attention(query, key, value, allowed)))

    def compared(self, x: Tensor, position: Tensor, centre: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Queries (B, heads, Q, 2 C / heads) and keys (B, heads, N, 2 C / heads)."""
        query, query_centre = self.query_content_proj(x), self.query_centre_proj(centre)
        key, key_pos = self.key_content_proj(memory.tokens), self.key_pos_proj(memory.position)
        if self.query_pos_proj is not None:
            query = query + self.query_pos_proj(position)
            key = key + key_pos
        query = torch.cat([split_heads(t, self.num_heads) for t in (query, query_centre)], -1)
        return query, torch.cat([split_heads(t, self.num_heads) for t in (key, key_pos)], -1)

    def attended(self, x: Tensor, position: Tensor, centre: Tensor, memory: Memory) -> Attended:
        """The centres of all cells, and the mean of the heads' weights."""
        query, key = self.compared(x, position, centre, memory)
        similarity = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        weights = similarity.masked_fill(memory.padding_mask[:, None, None], float("-inf")).softmax(-1).mean(1)
        height, width = memory.spatial_shapes[0].tolist()
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        points = torch.stack((x / width, y / height), -1).view(1, 1, 1, -1, 2).to(weights)
        return Attended(points.expand(*weights.shape[:2], -1, -1, -1), weights[:, :, None], is_dense=True)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, Q, C) to (B, heads, Q, C / heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, Q, C / heads) to (B, Q, C)."""
    return x.transpose(1, 2).flatten(2)


def init_matrices(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
