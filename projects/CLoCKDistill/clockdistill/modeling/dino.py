"""DINO: DETR with improved denoising anchor boxes (arXiv:2203.03605)."""

from torch import nn

from ..checks import checked, count
from .denoising import ContrastiveDenoising
from .detector import Detector, make_box_head, make_class_head, repeat
from .structures import Memory, Predictions, Queries
from .transformer import encoder_proposals, top_proposals


class DINO(Detector):
    """A deformable encoder; the memory's best cells as anchor boxes, with learned content ("mixed query selection",
    Sec. 3.4); a decoder that looks forward twice; contrastive denoising in training.

    Args:
        denoising: makes the denoising queries.
        num_queries: number of object queries; fewer if the memory has fewer tokens.
        shared: arguments of `Detector`, with a `DeformableEncoder` and a `DeformableDecoder`.
    """

    @checked(num_queries=count)
    def __init__(self, *, denoising: ContrastiveDenoising, num_queries: int, **shared):
        super().__init__(**shared)
        embed_dim = self.embed_dim
        self.denoising = denoising

        self.content = nn.Embedding(num_queries, embed_dim)
        self.proposal_proj = nn.Linear(embed_dim, embed_dim)
        self.proposal_norm = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.content.weight)
        nn.init.xavier_uniform_(self.proposal_proj.weight)

        # one head per decoder layer, and the last one for the encoder's proposals
        num_heads = len(self.decoder.layers) + 1
        self.class_heads = repeat(make_class_head(embed_dim, self.num_classes), num_heads)
        self.box_heads = repeat(make_box_head(embed_dim), num_heads)

    def propose(self, memory: Memory) -> Queries:
        """Return object queries: the boxes of the best-scored cells as anchors, with learned content."""
        proposals = encoder_proposals(
            memory, self.proposal_proj, self.proposal_norm, self.class_heads[-1], self.box_heads[-1]
        )
        best = top_proposals(proposals, proposals.logits[0].amax(-1), self.content.num_embeddings)
        reference = best.boxes[0].detach()
        content = self.content.weight[: reference.shape[1]].expand(reference.shape[0], -1, -1)
        return Queries(content, reference, proposals=best)

    def decode(self, memory: Memory, queries: Queries) -> Predictions:
        """Return the predictions of all decoder layers."""
        return self.decoder(memory, queries, self.class_heads[:-1], self.box_heads[:-1])
