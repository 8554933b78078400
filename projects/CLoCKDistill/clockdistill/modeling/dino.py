"""DINO: DETR with improved denoising anchor boxes (arXiv:2203.03605)."""

import copy
import math
from collections.abc import Sequence

import torch
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..layers import MLP, PositionEmbeddingSine
from .criterion import SetCriterion
from .denoising import ContrastiveDenoising
from .detector import Detector, padding_masks
from .structures import Memory, Outputs, Predictions, Queries, Target
from .transformer import DeformableDecoder, DeformableEncoder, cell_centres


class DINO(Detector):
    """Deformable encoder; the memory's best cells as anchor boxes with learnt content ("mixed query selection",
    Sec. 3.4); a decoder that looks forward twice; contrastive denoising in training.

    Args:
        backbone: a Detectron2 backbone.
        neck: from the backbone's maps to the levels, (B, C, H_l, W_l) each.
        position_embedding: of C channels.
        num_queries: object queries; fewer are made where the memory has fewer tokens.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: nn.Module,
        position_embedding: PositionEmbeddingSine,
        encoder: DeformableEncoder,
        decoder: DeformableDecoder,
        denoising: ContrastiveDenoising,
        criterion: SetCriterion,
        num_classes: int,
        num_queries: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        detections_per_image: int,
    ):
        super().__init__(num_classes, pixel_mean, pixel_std, detections_per_image)
        self.num_levels, self.embed_dim = encoder.level_embed.shape
        embed_dim = self.embed_dim
        self.backbone = backbone
        self.neck = neck
        self.position_embedding = position_embedding
        self.encoder = encoder
        self.decoder = decoder
        self.denoising = denoising
        self.criterion = criterion

        self.content = nn.Embedding(num_queries, embed_dim)
        self.proposal_proj = nn.Linear(embed_dim, embed_dim)
        self.proposal_norm = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.content.weight)
        nn.init.xavier_uniform_(self.proposal_proj.weight)

        # one head a decoder layer, and a last one for the encoder's proposals
        class_head = nn.Linear(embed_dim, num_classes)
        nn.init.constant_(class_head.bias, -math.log((1 - 0.01) / 0.01))
        box_head = MLP(embed_dim, embed_dim, 4, 3)
        nn.init.zeros_(box_head.layers[-1].weight)
        nn.init.zeros_(box_head.layers[-1].bias)
        num_heads = len(decoder.layers) + 1
        self.class_heads = nn.ModuleList(copy.deepcopy(class_head) for _ in range(num_heads))
        self.box_heads = nn.ModuleList(copy.deepcopy(box_head) for _ in range(num_heads))

    @property
    def label_embedding(self) -> nn.Embedding:
        return self.denoising.label_embedding

    def encode(self, images: ImageList) -> Memory:
        """Images to the encoder's memory."""
        features = self.neck(self.backbone(images.tensor))
        masks = padding_masks(images, [f.shape[-2:] for f in features])
        positions = [self.position_embedding(mask) for mask in masks]
        return self.encoder(features, masks, positions)

    def propose(self, memory: Memory) -> Queries:
        """Object queries: the boxes of the best-scored cells as anchors, with learnt content."""
        shapes = [tuple(shape) for shape in memory.spatial_shapes.tolist()]
        centres = cell_centres(shapes, memory.valid_ratios)
        extent = torch.cat([centres.new_full((h * w, 2), 0.05 * 2**level) for level, (h, w) in enumerate(shapes)])
        anchors = torch.cat((centres, extent.expand_as(centres)), -1)
        unfit = ((anchors <= 0.01) | (anchors >= 0.99)).any(-1, keepdim=True) | memory.padding_mask[..., None]
        tokens = self.proposal_norm(self.proposal_proj(memory.tokens.masked_fill(unfit, 0)))
        logits = self.class_heads[-1](tokens)
        # at an infinite logit an unfit cell's box is the same whatever the head says
        boxes = (self.box_heads[-1](tokens) + anchors.logit().masked_fill(unfit, float("inf"))).sigmoid()

        count = min(self.content.num_embeddings, logits.shape[1])
        best = logits.amax(-1).topk(count).indices[..., None]
        logits = logits.gather(1, best.expand(-1, -1, self.num_classes))
        boxes = boxes.gather(1, best.expand(-1, -1, 4))
        content = self.content.weight[:count].expand(len(boxes), -1, -1)
        return Queries(content, boxes.detach(), proposals=Predictions(logits[None], boxes[None]))

    def decode(self, memory: Memory, queries: Queries) -> Predictions:
        """All decoder layers' answers."""
        return self.decoder(memory, queries, self.class_heads[:-1], self.box_heads[:-1])

    def losses(
        self, memory: Memory, queries: Queries, targets: list[Target], extra: Queries | None
    ) -> tuple[dict[str, Tensor], Outputs]:
        """Losses of the decoder's layers, of denoising (`_dn`) and of the encoder's proposals (`_enc`)."""
        denoising, near, num_groups = self.denoising(targets)
        parts = [queries, denoising] + ([] if extra is None else [extra])
        predictions = self.decode(memory, Queries.cat(parts)).split([len(part) for part in parts])

        losses = self.criterion(predictions[0], targets)
        losses |= self.criterion(
            predictions[1], targets, "_dn", matches=near, padding=denoising.padding, repeats=num_groups
        )
        losses |= self.criterion(queries.proposals, targets, "_enc")
        return losses, Outputs(memory, predictions[0], predictions[2] if extra is not None else None)
