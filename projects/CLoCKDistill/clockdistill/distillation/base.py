"""Base class of the distillation losses."""

from torch import Tensor, nn

from ..modeling import Detector, Outputs, Targets


class DistillationLoss(nn.Module):
    """Compares the outputs of teacher and student. Subclasses implement `forward`.

    A loss may own parameters, such as a projection. They are trained with the student and saved for `--resume`, but are
    not part of the student's checkpoint. All of them must contribute to the loss in every step.

    `Outputs.memory` has only the levels that teacher and student share, in the same order.

    Attributes:
        requires_memory: the loss compares memories. Training does not start if teacher and student share no level.
        requires_targets: the loss needs `Outputs.target_predictions` of both models.
        requires_objects: the loss needs `Outputs.object_predictions` of the teacher.
    """

    requires_memory = False
    requires_targets = False
    requires_objects = False

    def build(self, teacher: Detector, student: Detector) -> None:
        """Create parameters whose shapes depend on the two models. Called once, before training."""

    def forward(self, teacher: Outputs, student: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Return scalar losses by name. The log calls them `loss_<name of the loss in the config>_<name>`."""
        raise NotImplementedError
