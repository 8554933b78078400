"""Data that the steps of a detector exchange: encode, propose, decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass
class Memory:
    """Output of a transformer encoder, N = sum of H_l * W_l over the levels.

    Attributes:
        tokens: (B, N, C).
        features: (B, N, C), the encoder's input: the backbone's features after the neck.
        padding_mask: (B, N), True on padding.
        level_shapes: height and width of each padded level. They are numbers, not a tensor, because the sizes in an
            exported graph cannot depend on a tensor's values.
        valid_ratios: (B, levels, 2), the fraction of width and height that is not padding.
        position: (B, N, C), position encoding of the cells, or None.
        spatial_shapes: the level shapes, (levels, 2) integers, on the CPU, so that reading them does not synchronize
            with the GPU.
        level_start_index: index in N of each level's first cell, (levels,) integers, also on the CPU.
    """

    tokens: Tensor
    features: Tensor
    padding_mask: Tensor
    level_shapes: Sequence[tuple[int, int]]
    valid_ratios: Tensor
    position: Tensor | None = None
    spatial_shapes: Tensor = field(init=False)
    level_start_index: Tensor = field(init=False)

    def __post_init__(self):
        # not `torch.tensor`, which would turn the sizes of a traced graph into constants
        sizes = [torch.stack([torch.as_tensor(size) for size in shape]) for shape in self.level_shapes]
        self.spatial_shapes = torch.stack(sizes)
        cells = self.spatial_shapes.prod(1)
        self.level_start_index = cells.cumsum(0) - cells

    def unpadded_sizes(self) -> Tensor:
        """Return width and height of each level without padding, in cells, (B, levels, 2).

        They are whole numbers: a rounding error could move a cell across the border of a box or of valid proposals.
        """
        return (self.valid_ratios * self.spatial_shapes.flip(-1).to(self.valid_ratios)).round()

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split (B, N, ...) into the levels, (B, H_l * W_l, ...)."""
        return x.split([height * width for height, width in self.level_shapes], 1)

    def select(self, levels: Sequence[int]) -> Memory:
        """Return the memory of the levels with these indices, in this order."""
        if list(levels) == list(range(len(self.level_shapes))):
            return self

        def cut(x: Tensor) -> Tensor:
            parts = self.split(x)
            return torch.cat([parts[level] for level in levels], 1)

        return Memory(
            tokens=cut(self.tokens),
            features=cut(self.features),
            padding_mask=cut(self.padding_mask),
            level_shapes=[self.level_shapes[level] for level in levels],
            valid_ratios=self.valid_ratios[:, list(levels)],
            position=None if self.position is None else cut(self.position),
        )


@dataclass
class Queries:
    """Input of a decoder.

    Attributes:
        content: (B, Q, C).
        reference: (B, Q, 4), boxes (cx, cy, w, h) in [0, 1] of the image without padding.
        blocked: (Q, Q), True where query i (first axis) must not attend to query j; None if all may.
        padding: (B, Q), True on padded slots, or None if there are none.
        position: (B, Q, C), or None where the decoder computes it from the reference boxes.
        proposals: the encoder's own predictions, one layer, in two-stage detectors.
        attends_to_objects: whether `cat` lets these queries attend to the object queries.
    """

    content: Tensor
    reference: Tensor
    blocked: Tensor | None = None
    padding: Tensor | None = None
    position: Tensor | None = None
    proposals: Predictions | None = None
    attends_to_objects: bool = False

    def __len__(self) -> int:
        return self.content.shape[1]

    @classmethod
    def cat(cls, parts: Sequence[Queries]) -> Queries:
        """Concatenate queries for one decoder pass, the object queries first.

        No part attends to another, except that parts with `attends_to_objects` attend to the first one. The result has
        no `proposals`.
        """
        if len(parts) == 1:
            return parts[0]
        total, device = sum(map(len, parts)), parts[0].content.device
        blocked = torch.ones(total, total, dtype=torch.bool, device=device)
        paddings, start = [], 0
        for part in parts:
            rows = slice(start, start + len(part))
            blocked[rows, rows] = False if part.blocked is None else part.blocked
            if part.attends_to_objects:
                blocked[rows, : len(parts[0])] = False
            start = rows.stop
            no_padding = torch.zeros(part.content.shape[:2], dtype=torch.bool, device=device)
            paddings.append(no_padding if part.padding is None else part.padding)
        return cls(
            content=torch.cat([part.content for part in parts], 1),
            reference=torch.cat([part.reference for part in parts], 1),
            blocked=blocked,
            padding=torch.cat(paddings, 1),
            position=None if parts[0].position is None else torch.cat([part.position for part in parts], 1),
        )

    def attention_mask(self, num_heads: int = 1) -> Tensor | None:
        """(B * num_heads, Q, Q), True where query i (second axis) must not attend to query j; None if all may.

        A padded slot still attends to itself, because a softmax over nothing is NaN.
        """
        if self.blocked is None and self.padding is None:
            return None
        B, Q, _ = self.content.shape
        blocked = torch.zeros(B, Q, Q, dtype=torch.bool, device=self.content.device)
        if self.blocked is not None:
            blocked |= self.blocked
        if self.padding is not None:
            blocked |= self.padding[:, None]
        blocked &= ~torch.eye(Q, dtype=torch.bool, device=blocked.device)
        return blocked.repeat_interleave(num_heads, 0)


class Predictions(NamedTuple):
    """Class logits (E, B, Q, K) and boxes (E, B, Q, 4) as (cx, cy, w, h) in [0, 1] of E decoder layers."""

    logits: Tensor
    boxes: Tensor

    def split(self, sizes: list[int]) -> list[Predictions]:
        """Split along the queries into parts of the given sizes."""
        logits, boxes = self.logits.split(sizes, 2), self.boxes.split(sizes, 2)
        return [Predictions(*part) for part in zip(logits, boxes, strict=True)]


class Target(NamedTuple):
    """One image's objects: labels (n,) and boxes (n, 4) as (cx, cy, w, h) in [0, 1] of the image without padding.

    `ignored` holds regions in which predictions of the region's label are not penalized; None if there are none.
    """

    labels: Tensor
    boxes: Tensor
    ignored: Target | None = None


class Targets(Sequence[Target]):
    """A batch's objects: a sequence with one `Target` per image, and the same objects padded to one size.

    Attributes:
        labels: (B, n), n being the largest number of objects per image, at least 1.
        boxes: (B, n, 4).
        padding: (B, n), True on padded slots.
        num_objects: what the detection losses are divided by; None for the number of objects in this batch, averaged
            over processes. See `SetCriterion.joint_normalizer`.
    """

    def __init__(self, images: Sequence[Target], num_objects: Tensor | None = None):
        self.images = list(images)
        self.num_objects = num_objects
        device = self.images[0].boxes.device
        size = len(self.images), max(1, max(len(target.labels) for target in self.images))
        self.labels = torch.zeros(size, dtype=torch.long, device=device)
        self.boxes = torch.full((*size, 4), 0.5, device=device)
        self.padding = torch.ones(size, dtype=torch.bool, device=device)
        for image, target in enumerate(self.images):
            count = len(target.labels)
            self.labels[image, :count] = target.labels
            self.boxes[image, :count] = target.boxes
            self.padding[image, :count] = False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]

    @cached_property
    def ignored(self) -> Targets | None:
        """The ignored regions of all images, or None if no image has any."""
        nothing = Target(self.images[0].labels[:0], self.images[0].boxes[:0])
        regions = [target.ignored or nothing for target in self.images]
        return Targets(regions) if any(len(region.labels) for region in regions) else None


@dataclass
class Outputs:
    """What a training step computes besides the losses.

    Attributes:
        memory: the encoder's output.
        object_predictions: predictions for the object queries.
        extra_predictions: predictions for other groups of queries, by the group's name.
        object_content: (E, B, Q, C), content of the object queries after each decoder layer.

    What was not requested is None or missing.
    """

    memory: Memory | None = None
    object_predictions: Predictions | None = None
    extra_predictions: dict[str, Predictions] = field(default_factory=dict)
    object_content: Tensor | None = None

    @property
    def target_predictions(self) -> Predictions | None:
        """Predictions for the target queries."""
        return self.extra_predictions.get("targets")
