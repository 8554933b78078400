"""Location-and-context-aware memory distillation (arXiv:2502.10683, Sec. 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..modeling import Memory, Outputs, Target
from ..modeling.criterion import average_over_ranks
from ..modeling.structures import pad_targets
from .base import DistillationLoss, at_least_float32


def location_and_scale_weights(memory: Memory, targets: list[Target]) -> tuple[Tensor, Tensor]:
    """The products of location and scale masks, M * S and (1 - M) * S.

    A cell belongs to the object of the smallest box that covers it, and weighs one over that box's extent in cells;
    every other cell that is not padding weighs one over their number in its level.

    Returns:
        objects (B, N) and background (B, N), float32.
    """
    _, boxes, unused = pad_targets(targets)
    boxes = boxes.double()
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    objects, backgrounds = [], []
    padding = memory.padding_mask.split([h * w for h, w in memory.spatial_shapes.tolist()], dim=1)
    for level, (height, width) in enumerate(memory.spatial_shapes.tolist()):
        # boxes are normalised to the image without padding, cells belong to the padded level
        extent = memory.valid_ratios[:, None, level].double() * boxes.new_tensor([width, height])
        # an edge that only float32's rounding moved off a cell border is on it
        first = ((low + 2e-7) * extent).floor().clamp(min=0)
        last = torch.minimum(((high - 2e-7) * extent).ceil(), extent.round())
        first = torch.minimum(first, last - 1)
        cells = (last - first).prod(-1)

        column, row = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
        in_column = (column >= first[..., :1]) & (column < last[..., :1])
        in_row = (row >= first[..., 1:]) & (row < last[..., 1:])
        covers = in_row[..., :, None] & in_column[..., None, :] & ~unused[..., None, None]
        scale = (covers / cells[..., None, None]).amax(1).flatten(1)
        background = (scale == 0) & ~padding[level]
        objects.append(scale)
        backgrounds.append(background / background.sum(1, keepdim=True).clamp(min=1))
    return torch.cat(objects, 1).float(), torch.cat(backgrounds, 1).float()


def resize_levels(tokens: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Tokens (B, N, C) of levels with shapes `source` (levels, 2) to those of `target`, bilinearly."""
    if torch.equal(source, target):
        return tokens
    levels = []
    by_level = tokens.split(source.prod(1).tolist(), 1)
    for level, shape, new in zip(by_level, source.tolist(), target.tolist(), strict=True):
        level = level.transpose(1, 2).unflatten(2, shape)
        levels.append(F.interpolate(level, size=new, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2))
    return torch.cat(levels, 1)


NAMES = {"tokens": "mem", "features": "feature"}


class FeatureLoss(DistillationLoss):
    """Base of the losses that compare the teacher's and the student's maps cell by cell.

    Args:
        feature: "tokens", the encoder's memory, or "features", the backbone's maps after the neck.
    """

    asks_memory = True

    def __init__(self, feature: str):
        if feature not in NAMES:
            raise UserError(f"the feature of a distillation loss is one of {', '.join(NAMES)}, and not {feature}")
        self.feature = feature
        self.name = NAMES[feature]

    def make_projection(self, student_dim: int, teacher_dim: int) -> nn.Module | None:
        return None if student_dim == teacher_dim else nn.Linear(student_dim, teacher_dim)

    def squared_distance(self, teacher: Outputs, student: Outputs) -> Tensor:
        """(B, N), at least float32, summed over channels, in the teacher's levels and width."""
        ours = getattr(student.memory, self.feature)
        if self.projection is not None:
            ours = self.projection(ours)
        ours = resize_levels(at_least_float32(ours), student.memory.spatial_shapes, teacher.memory.spatial_shapes)
        return (at_least_float32(getattr(teacher.memory, self.feature)) - ours).square().sum(-1)


class MemoryLoss(FeatureLoss):
    """Squared distance of the memories, every object weighing alike and the background of a level as one more.

    Args:
        alpha, beta: weights of objects and of background.
    """

    def __init__(self, alpha: float, beta: float, feature: str = "tokens"):
        super().__init__(feature)
        self.alpha = alpha
        self.beta = beta

    def __call__(self, teacher: Outputs, student: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        distance = self.squared_distance(teacher, student)
        objects, background = location_and_scale_weights(teacher.memory, targets)
        return {
            f"loss_{self.name}_object": self.alpha * (objects * distance).sum() / len(targets),
            f"loss_{self.name}_background": self.beta * (background * distance).sum() / len(targets),
        }


class PlainFeatureLoss(FeatureLoss):
    """Mean squared error over channels and cells that are not padding: the ablation without masks."""

    def __init__(self, weight: float, feature: str = "tokens"):
        super().__init__(feature)
        self.weight = weight

    def __call__(self, teacher: Outputs, student: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        distance = self.squared_distance(teacher, student)
        valid = ~teacher.memory.padding_mask
        channels = getattr(teacher.memory, self.feature).shape[-1]
        cells = average_over_ranks(valid.sum().to(distance))
        return {f"loss_{self.name}_plain": self.weight * (distance * valid).sum() / (cells * channels)}
