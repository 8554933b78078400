"""Deformable DETR (arXiv:2010.04159): single-stage, with iterative bounding box refinement, and two-stage."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..layers import inverse_sigmoid, sine_embed_boxes
from .detector import Detector, make_box_head, make_class_head
from .structures import Memory, Outputs, Predictions, Queries, Target
from .transformer import DeformableDecoderLayer, cell_anchors


class DeformableDETR(Detector):
    """Deformable encoder; learnt queries that look around a reference point of theirs, or, in two stages, queries made
    of the memory's best boxes.

    Args:
        num_queries: object queries; in two stages fewer are made where the memory has fewer tokens.
        two_stage: make the queries of the encoder's proposals (Sec. 4.2); the decoder must refine boxes.
        shared: as in `Detector`, with a `DeformableEncoder` and a `DeformableDETRDecoder`.
    """

    def __init__(self, *, num_queries: int, two_stage: bool, **shared):
        super().__init__(**shared)
        if two_stage and not self.decoder.refine:
            raise UserError("two-stage Deformable DETR refines its boxes: set model.decoder.refine=True")
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

        # layers that refine one another's boxes have a head each, and the encoder's proposals the last; else they share
        classifier, regressor = make_class_head(embed_dim, self.num_classes), make_box_head(embed_dim)
        num_heads = len(self.decoder.layers) + two_stage
        clone = copy.deepcopy if self.decoder.refine else lambda head: head
        self.class_heads = nn.ModuleList(clone(classifier) for _ in range(num_heads))
        self.box_heads = nn.ModuleList(clone(regressor) for _ in range(num_heads))
        if not two_stage:
            # width and height are predicted as they are by the first layer, and objects are small: 0.12 of the image
            nn.init.constant_(self.box_heads[0].layers[-1].bias[2:], -2.0)

    def propose(self, memory: Memory) -> Queries:
        """Object queries: learnt ones, or the boxes of the best-scored cells, encoded."""
        if not self.two_stage:
            position, content = self.query_embedding.weight.expand(len(memory.tokens), -1, -1).chunk(2, -1)
            # in half precision neighbouring points would be pixels apart
            points = self.reference_points(position).float().sigmoid()
            return Queries(content, torch.cat((points, torch.full_like(points, 0.5)), -1), position=position)

        anchors, unfit = cell_anchors(memory)
        tokens = self.proposal_norm(self.proposal_proj(memory.tokens.masked_fill(unfit, 0)))
        logits = self.class_heads[-1](tokens)
        boxes = (self.box_heads[-1](tokens) + anchors).sigmoid()
        # the first class stands for any object
        best = logits[..., 0].topk(min(self.num_queries, logits.shape[1])).indices
        reference = boxes.detach().gather(1, best[..., None].expand(-1, -1, 4))
        _, content = self.encode_boxes(reference)
        return Queries(content, reference, proposals=Predictions(logits[None], boxes[None]))

    def encode_boxes(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, Q, 4) to the position and the content, (B, Q, C) each, of queries for them."""
        # in the order x, y, w, h here, and not y, x, w, h
        encoded = sine_embed_boxes(boxes[..., [1, 0, 2, 3]], self.embed_dim // 2)
        return self.query_norm(self.query_proj(encoded)).chunk(2, -1)

    def decode(self, memory: Memory, queries: Queries) -> Predictions:
        """All decoder layers' answers. Single-stage queries must bring a position; of their boxes the centre counts."""
        position = queries.position if queries.position is not None else self.encode_boxes(queries.reference)[0]
        depth = len(self.decoder.layers)
        heads = self.class_heads[:depth], self.box_heads[:depth]
        return self.decoder(memory, queries, position, *heads, from_points=not self.two_stage)

    def losses(
        self, memory: Memory, queries: Queries, targets: list[Target], extra: Queries | None
    ) -> tuple[dict[str, Tensor], Outputs]:
        """Losses of the decoder's layers, and of every cell's proposal (`_enc`), objects against background."""
        losses, outputs = super().losses(memory, queries, targets, extra)
        if queries.proposals is not None:
            losses |= self.criterion(queries.proposals, [as_one_class(target) for target in targets], "_enc")
        return losses, outputs


def as_one_class(target: Target) -> Target:
    """All labels 0."""
    ignored = None if target.ignored is None else as_one_class(target.ignored)
    return Target(torch.zeros_like(target.labels), target.boxes, ignored)


class DeformableDETRDecoder(nn.Module):
    """Layers around reference points or boxes; every layer has the same position encoding.

    Args:
        refine: each layer starts from the boxes of the one before, which carry no gradient (Sec. A.4); else all of
            them start from the queries' own.
        eps: boxes closer than this to the border of [0, 1] are taken to be as close, where their logit is formed.
    """

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
        """Predictions of every layer; heads are given a layer each.

        Args:
            position: (B, Q, C).
            from_points: of the queries' boxes the centre alone is asked about.
        """
        mask = queries.attention_mask(self.num_heads)
        x, reference = queries.content, queries.reference
        if from_points:
            # the logit of 0.5 is 0: width and height are then predicted as they are
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
