"""What the trainer hook asks of every distillation loss."""

import torch
from torch import Tensor, nn

from ..modeling import Outputs, Target


def at_least_float32(x: Tensor) -> Tensor:
    """Squares of half precision would overflow."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class DistillationLoss:
    """(teacher's outputs, student's outputs, targets) to named scalar losses.

    The memories that it is given have the levels that can be compared, as many of the teacher's as of the student's.

    Attributes:
        asks_memory: whether it compares memories.
        asks_targets: whether it needs both decoders' answers to target queries (`Outputs.extra`).
        asks_objects: whether it needs the teacher's object predictions (`Outputs.objects`).
        projection: from the student's width to the teacher's, (..., C_S) to (..., C_T), trained with the student; None
            where it needs none.
    """

    asks_memory = False
    asks_targets = False
    asks_objects = False
    projection: nn.Module | None = None

    def make_projection(self, student_dim: int, teacher_dim: int) -> nn.Module | None:
        return None

    def __call__(self, teacher: Outputs, student: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        raise NotImplementedError
