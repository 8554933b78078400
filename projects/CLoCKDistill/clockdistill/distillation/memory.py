"""Location-and-context-aware memory distillation (arXiv:2502.10683, Sec. 3.2)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import checked, not_negative
from ..errors import UserError
from ..layers import at_least_float32
from ..modeling import Detector, Memory, Outputs, Targets
from .base import DistillationLoss

# attributes of `Memory`, by the names in configs
FEATURES = {"memory": "tokens", "backbone": "features"}


def location_and_scale_weights(memory: Memory, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return the products of location and scale masks, M * S and (1 - M) * S.

    A cell inside boxes has weight 1 / area of the smallest one, in cells. Any other cell that is not padding has weight
    1 / number of such cells in its level.

    Returns:
        objects (B, N) and background (B, N), float32.
    """
    boxes = targets.boxes.double()
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    objects, backgrounds = [], []
    sizes = memory.unpadded_sizes().double()
    padding = memory.split(memory.padding_mask)
    for level, (height, width) in enumerate(memory.spatial_shapes.tolist()):
        # boxes are normalized to the image without padding, cells belong to the padded level
        size = sizes[:, None, level]
        # tolerate float32's rounding of an edge that lies on a cell border
        first = ((low + 2e-7) * size).floor().clamp(min=0)
        last = torch.minimum(((high - 2e-7) * size).ceil(), size)
        first = torch.minimum(first, last - 1)
        cells = (last - first).prod(-1)

        column, row = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
        in_column = (column >= first[..., :1]) & (column < last[..., :1])
        in_row = (row >= first[..., 1:]) & (row < last[..., 1:])
        covers = in_row[..., :, None] & in_column[..., None, :] & ~targets.padding[..., None, None]
        scale = (covers / cells[..., None, None]).amax(1).flatten(1)
        background = (scale == 0) & ~padding[level]
        objects.append(scale)
        backgrounds.append(background / background.sum(1, keepdim=True).clamp(min=1))
    return torch.cat(objects, 1).float(), torch.cat(backgrounds, 1).float()


def resize_levels(tokens: Tensor, source: Tensor, target: Tensor, scales: Sequence[float]) -> Tensor:
    """Resize tokens (B, N, C) from level shapes `source` (levels, 2) to those of `target`, bilinearly.

    Each level is resized by its scale, the stride of `tokens` divided by that of the result. Two models may pad a batch
    differently at the right and bottom, so it is cut off there, or continued by its last cells.
    """
    if torch.equal(source, target) and all(scale == 1 for scale in scales):
        return tokens
    levels = []
    by_level = tokens.split(source.prod(1).tolist(), 1)
    for level, shape, new, scale in zip(by_level, source.tolist(), target.tolist(), scales, strict=True):
        level = level.transpose(1, 2).unflatten(2, shape)
        height, width = (math.ceil(cells / scale) for cells in new)
        level = level[:, :, :height, :width]
        level = F.pad(level, (0, width - level.shape[3], 0, height - level.shape[2]), mode="replicate")
        if scale != 1:
            level = F.interpolate(level, scale_factor=scale, mode="bilinear", align_corners=False)
        levels.append(level[:, :, : new[0], : new[1]].flatten(2).transpose(1, 2))
    return torch.cat(levels, 1)


class FeatureLoss(DistillationLoss):
    """Base class of losses that compare the maps of teacher and student cell by cell.

    Args:
        feature: "memory", the encoder's output, or "backbone", the backbone's features after the neck.

    Attributes:
        projection: maps the student's width to the teacher's; the identity if they are equal.
    """

    requires_memory = True

    def __init__(self, feature: str):
        super().__init__()
        if feature not in FEATURES:
            raise UserError(f'the feature of a distillation loss is "{feature}": choose {" or ".join(FEATURES)}')
        self.feature = feature
        self.projection = nn.Identity()

    def build(self, teacher: Detector, student: Detector) -> None:
        if student.embed_dim != teacher.embed_dim:
            self.projection = nn.Linear(student.embed_dim, teacher.embed_dim)

    def maps(self, outputs: Outputs) -> Tensor:
        """Return the maps (B, N, C) that are compared."""
        return getattr(outputs.memory, FEATURES[self.feature])

    def project(self, student: Outputs) -> Tensor:
        """Return the student's maps (B, N, C) in the teacher's width."""
        return self.projection(self.maps(student))

    def aligned(self, teacher: Outputs, student: Outputs) -> tuple[Tensor, Tensor]:
        """Return the maps of both models on the teacher's levels and in its width, (B, N, C), in at least float32."""
        maps = at_least_float32(self.project(student))
        shapes = student.memory.spatial_shapes, teacher.memory.spatial_shapes
        maps = resize_levels(maps, *shapes, self.level_scales)
        return at_least_float32(self.maps(teacher)), maps

    def squared_distance(self, teacher: Outputs, student: Outputs) -> Tensor:
        """Return the squared distance (B, N) of the aligned maps, summed over channels."""
        teacher_maps, student_maps = self.aligned(teacher, student)
        return (teacher_maps - student_maps).square().sum(-1)


class MemoryLoss(FeatureLoss):
    """Location-and-context-aware memory loss: objects have equal total weight whatever their size, and so
    does the background of each level.

    Args:
        alpha, beta: weights of objects and background.
    """

    @checked(alpha=not_negative, beta=not_negative)
    def __init__(self, alpha: float, beta: float, feature: str = "memory"):
        super().__init__(feature)
        self.alpha = alpha
        self.beta = beta

    def forward(self, teacher: Outputs, student: Outputs, targets: Targets) -> dict[str, Tensor]:
        distance = self.squared_distance(teacher, student)
        objects, background = location_and_scale_weights(teacher.memory, targets)
        return {
            "object": self.alpha * (objects * distance).sum() / len(targets),
            "background": self.beta * (background * distance).sum() / len(targets),
        }


class PlainFeatureLoss(FeatureLoss):
    """Mean squared error over channels and cells that are not padding: the ablation without masks."""

    @checked(weight=not_negative)
    def __init__(self, weight: float, feature: str = "memory"):
        super().__init__(feature)
        self.weight = weight

    def normalizer(self, teacher: Outputs, targets: Targets) -> Tensor:
        """Return the number of values that are compared."""
        return (~teacher.memory.padding_mask).sum() * self.maps(teacher).shape[-1]

    def forward(
        self, teacher: Outputs, student: Outputs, targets: Targets, normalizer: Tensor | None = None
    ) -> dict[str, Tensor]:
        if normalizer is None:
            normalizer = self.normalizer(teacher, targets)
        distance = self.squared_distance(teacher, student).masked_fill(teacher.memory.padding_mask, 0)
        return {"mse": self.weight * distance.sum() / normalizer}
