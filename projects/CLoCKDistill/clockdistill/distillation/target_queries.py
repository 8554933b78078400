"""Queries made from the ground truth, for teacher and student alike (arXiv:2502.10683, Sec. 3.3)."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..layers import MLP, sine_embed_boxes
from ..modeling import Detector, Queries, Targets

SOURCES = ("denoising", "calibrated", "random")


class BoxEncoder(nn.Module):
    """Encodes boxes (B, Q, 4) as query positions (B, Q, C): an MLP of the sinusoidal encoding."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.embed_dim = embed_dim
        self.mlp = MLP(2 * embed_dim, embed_dim, embed_dim, 2)

    def forward(self, boxes: Tensor) -> Tensor:
        return self.mlp(sine_embed_boxes(boxes, self.embed_dim // 2))


class TargetEmbedding(nn.Module):
    """Makes one query per object: the embedding of its class as content, its box as reference.

    Attributes:
        content: class embedding (num_classes, C).
        box_encoder: computes positions for detectors whose decoder does not; else None.
    """

    def __init__(self, detector: Detector):
        super().__init__()
        self.content = nn.Embedding(detector.num_classes, detector.embed_dim)
        self.box_encoder = None if detector.encodes_boxes else BoxEncoder(detector.embed_dim)

    def forward(self, targets: Targets) -> Queries:
        position = None if self.box_encoder is None else self.box_encoder(targets.boxes)
        return Queries(self.content(targets.labels), targets.boxes, padding=targets.padding, position=position)


def check_source(source: str) -> None:
    if source not in SOURCES:
        raise UserError(f'distillation.embedding is "{source}": choose one of {", ".join(SOURCES)}')


def make_embedding(source: str, teacher: Detector) -> TargetEmbedding:
    """Return the frozen embedding of the teacher's target queries, not yet calibrated.

    Args:
        source: "denoising", the class embedding that the teacher learned in denoising; "calibrated" or "random", a
            random one.

    Raises:
        UserError: the source is "denoising", and the teacher was trained without it.
    """
    # the same on all ranks and after --resume, because the embedding is not part of the state
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        embedding = TargetEmbedding(teacher)
    if source == "denoising":
        if teacher.label_embedding is None:
            raise UserError("the teacher was trained without denoising: set distillation.embedding=calibrated")
        embedding.content.load_state_dict(teacher.label_embedding.state_dict())
    return embedding.to(teacher.device).requires_grad_(False)


class QueryAdapter(nn.Module):
    """Maps groups of the teacher's queries to the student's width, with positions if the student needs them."""

    def __init__(self, teacher: Detector, student: Detector):
        super().__init__()
        same_width = teacher.embed_dim == student.embed_dim
        self.content = None if same_width else nn.Linear(teacher.embed_dim, student.embed_dim)
        self.needs_position = not student.encodes_boxes
        self.position = None
        if self.needs_position and teacher.encodes_boxes:
            self.position = BoxEncoder(student.embed_dim)
        elif self.needs_position and not same_width:
            self.position = nn.Linear(teacher.embed_dim, student.embed_dim)

    def forward(self, groups: Mapping[str, Queries]) -> dict[str, Queries]:
        return {name: self.adapt(queries) for name, queries in groups.items()}

    def adapt(self, queries: Queries) -> Queries:
        content, position = queries.content, queries.position
        if self.content is not None:
            content = self.content(content)
        if self.position is not None:
            position = self.position(queries.reference if position is None else position)
        return replace(queries, content=content, position=position if self.needs_position else None)
