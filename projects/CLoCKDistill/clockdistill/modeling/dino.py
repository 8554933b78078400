"""DINO: DETR with improved denoising anchor boxes (arXiv:2203.03605)."""

import copy

from torch import Tensor, nn

from .denoising import ContrastiveDenoising
from .detector import Detector, make_box_head, make_class_head
from .structures import Memory, Outputs, Predictions, Queries, Target
from .transformer import cell_anchors


class DINO(Detector):
    """Deformable encoder; the memory's best cells as anchor boxes with learnt content ("mixed query selection",
    Sec. 3.4); a decoder that looks forward twice; contrastive denoising in training.

    Args:
        denoising: makes the queries of that name.
        num_queries: object queries; fewer are made where the memory has fewer tokens.
        shared: as in `Detector`, with a `DeformableEncoder` and a `DeformableDecoder`.
    """

    def __init__(self, *, denoising: ContrastiveDenoising, num_queries: int, **shared):
        super().__init__(**shared)
        embed_dim = self.embed_dim
        self.denoising = denoising

        self.content = nn.Embedding(num_queries, embed_dim)
        self.proposal_proj = nn.Linear(embed_dim, embed_dim)
        self.proposal_norm = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.content.weight)
        nn.init.xavier_uniform_(self.proposal_proj.weight)

        # one head a decoder layer, and a last one for the encoder's proposals
        classifier, regressor = make_class_head(embed_dim, self.num_classes), make_box_head(embed_dim)
        num_heads = len(self.decoder.layers) + 1
        self.class_heads = nn.ModuleList(copy.deepcopy(classifier) for _ in range(num_heads))
        self.box_heads = nn.ModuleList(copy.deepcopy(regressor) for _ in range(num_heads))

    @property
    def label_embedding(self) -> nn.Embedding:
        return self.denoising.label_embedding

    def propose(self, memory: Memory) -> Queries:
        """Object queries: the boxes of the best-scored cells as anchors, with learnt content."""
        anchors, unfit = cell_anchors(memory)
        tokens = self.proposal_norm(self.proposal_proj(memory.tokens.masked_fill(unfit, 0)))
        logits = self.class_heads[-1](tokens)
        boxes = (self.box_heads[-1](tokens) + anchors).sigmoid()

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
