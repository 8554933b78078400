"""Deformable DETR (arXiv:2010.04159): single-stage, with iterative bounding box refinement, and two-stage."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import checked, count
from ..errors import UserError
from ..layers import inverse_sigmoid, sine_embed_boxes
from .detector import Detector, make_box_head, make_class_head, repeat
from .structures import Memory, Predictions, Queries, Target, Targets
from .transformer import DIMENSIONS, DeformableDecoderLayer, encoder_proposals, top_proposals


class DeformableDETR(Detector):
    """A deformable encoder, and a decoder whose queries attend around a learned reference point or, in the two-stage
    variant, around the encoder's best proposals.

    Args:
        num_queries: number of object queries; with two stages fewer if the memory has fewer tokens.
        two_stage: make the queries from the encoder's proposals (Sec. 4.2); requires box refinement in the decoder.
        shared: arguments of `Detector`, with a `DeformableEncoder` and a `DeformableDETRDecoder`.
    """

    @checked(num_queries=count)
    def __init__(self, *, num_queries: int, two_stage: bool, **shared):
        super().__init__(**shared)
        if two_stage and not self.decoder.refine:
            raise UserError("two-stage Deformable DETR requires box refinement: set model.decoder.refine=True")
        embed_dim = self.embed_dim
        self.num_queries = num_queries
        self.two_stage = two_stage
        self.encodes_boxes = two_stage

        if two_stage:
            self.proposal_proj = nn.Linear(embed_dim, embed_dim)
            self.proposal_norm = nn.LayerNorm(embed_dim)
            self.query_proj = nn.Linear(2 * embed_dim, 2 * embed_dim)
            self.query_norm = nn.LayerNorm(2 * embed_dim)
            nn.init.xavier_uniform_(self.proposal_proj.weight)
            nn.init.xavier_uniform_(self.query_proj.weight)
        else:
            self.query_embedding = nn.Embedding(num_queries, 2 * embed_dim)
            self.reference_points = nn.Linear(embed_dim, 2)
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)

        # decoder layers share their heads unless they refine each other's boxes
        # two-stage adds a last head for the proposals
        class_head, box_head = make_class_head(embed_dim, self.num_classes), make_box_head(embed_dim)
        num_heads = len(self.decoder.layers) + two_stage
        if self.decoder.refine:
            self.class_heads, self.box_heads = repeat(class_head, num_heads), repeat(box_head, num_heads)
        else:
            self.class_heads = nn.ModuleList([class_head] * num_heads)
            self.box_heads = nn.ModuleList([box_head] * num_heads)
        if not two_stage:
            # the first layer predicts width and height directly, and objects are small: 0.12 of the image
            nn.init.constant_(self.box_heads[0].layers[-1].bias[2:], -2.0)

    def propose(self, memory: Memory) -> Queries:
        """Return object queries: learned ones, or the encoded boxes of the best-scored cells."""
        if not self.two_stage:
            return self.learned_queries(self.query_embedding.weight.expand(memory.tokens.shape[0], -1, -1))

        proposals = encoder_proposals(
            memory, self.proposal_proj, self.proposal_norm, self.class_heads[-1], self.box_heads[-1]
        )
        # the first class stands for any object
        best = top_proposals(proposals, proposals.logits[0, ..., 0], self.num_queries)
        reference = best.boxes[0].detach()
        _, content = self.encode_boxes(reference)
        return Queries(content, reference, proposals=proposals)

    def learned_queries(self, embedding: Tensor) -> Queries:
        """Return single-stage queries with the given position and content, (B, Q, 2 C)."""
        position, content = embedding.chunk(2, -1)
        # in half precision neighboring points would be pixels apart
        points = self.reference_points(position).float().sigmoid()
        return Queries(content, torch.cat((points, torch.full_like(points, 0.5)), -1), position=position)

    def random_queries(self, memory: Memory, count: int) -> Queries:
        """Return queries (B, count) of random boxes or, single-stage, random embeddings in the learned ones' range."""
        size = memory.tokens.shape[0], count
        if self.two_stage:
            boxes = torch.rand(*size, 4, device=self.device)
            return Queries(self.encode_boxes(boxes)[1], boxes)
        low, high = self.query_embedding.weight.aminmax(dim=0)
        return self.learned_queries(low + (high - low) * torch.rand(*size, len(low), device=self.device))

    def proposal_targets(self, targets: Targets) -> Targets:
        """Return the objects of all classes as one class."""
        return Targets([as_one_class(target) for target in targets], targets.num_objects)

    def encode_boxes(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Encode boxes (B, Q, 4) as the position and the content of queries, (B, Q, C) each."""
        # the order is x, y, w, h here, not y, x, w, h
        encoded = sine_embed_boxes(boxes[..., [1, 0, 2, 3]], self.embed_dim // 2)
        return self.query_norm(self.query_proj(encoded)).chunk(2, -1)

    def decode(self, memory: Memory, queries: Queries) -> Predictions:
        """Return the predictions of all decoder layers.

        Single-stage queries must have a position, and only the center of their boxes is used.
        """
        position = queries.position if queries.position is not None else self.encode_boxes(queries.reference)[0]
        depth = len(self.decoder.layers)
        heads = self.class_heads[:depth], self.box_heads[:depth]
        return self.decoder(memory, queries, position, *heads, from_points=not self.two_stage)


def as_one_class(target: Target) -> Target:
    """Set all labels to 0."""
    ignored = None if target.ignored is None else as_one_class(target.ignored)
    return Target(torch.zeros_like(target.labels), target.boxes, ignored)


class DeformableDETRDecoder(nn.Module):
    """Layers that attend around reference points or boxes, with the same position encoding in every layer.

    Args:
        refine: each layer starts from the previous layer's boxes, without gradient (Sec. A.4); otherwise all layers
            start from those of the queries.
        eps: coordinates are clamped to [eps, 1 - eps] before taking their logit.
    """

    @checked(**DIMENSIONS)
    def __init__(
        self,
        num_layers: int,
        embed_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        feedforward_dim: int,
        refine: bool,
        eps: float,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.refine = refine
        self.eps = eps
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(embed_dim, num_heads, num_levels, num_points, feedforward_dim)
            for _ in range(num_layers)
        )

    def forward(
        self,
        memory: Memory,
        queries: Queries,
        position: Tensor,
        class_heads: Sequence[nn.Module],
        box_heads: Sequence[nn.Module],
        from_points: bool,
    ) -> Predictions:
        """Return the predictions of every layer.

        Args:
            position: (B, Q, C).
            class_heads, box_heads: one per layer.
            from_points: use only the center of the queries' boxes.
        """
        mask = queries.attention_mask(self.num_heads)
        x, reference = queries.content, queries.reference
        if from_points:
            # the logit of 0.5 is 0, so that width and height are predicted directly
            reference = torch.cat((reference[..., :2], torch.full_like(reference[..., 2:], 0.5)), -1)
        ratios = memory.valid_ratios.repeat(1, 1, 2)[:, None]
        all_logits, all_boxes = [], []
        for layer, class_head, box_head in zip(self.layers, class_heads, box_heads, strict=True):
            level_reference = reference[:, :, None] * ratios
            x = layer(x, position, level_reference[..., :2] if from_points else level_reference, memory, mask)
            all_logits.append(class_head(x))
            all_boxes.append((box_head(x) + inverse_sigmoid(reference, self.eps)).sigmoid())
            if self.refine:
                reference, from_points = all_boxes[-1].detach(), False
        return Predictions(torch.stack(all_logits), torch.stack(all_boxes))
