"""Base class of the distillation losses."""

from torch import Tensor, nn

from ..modeling import Detector, Outputs, Targets


class DistillationLoss(nn.Module):
    """Compares the outputs of teacher and student. Subclasses implement `forward`.

    A loss may own parameters, such as a projection. They are trained with the student and saved for `--resume`, but are
    not part of the student's checkpoint. All of them must contribute to the loss in every step.

    Attributes:
        requires_memory: the loss gets `Outputs.memory` of both models, with the levels whose strides they share, in the
            same order. If they share no stride but have equally many levels, it gets all of them, paired in order;
            otherwise training does not start.
        requires_targets: the loss gets `Outputs.target_predictions` of both models.
        requires_objects: the loss gets `Outputs.object_predictions` of both models.
        num_levels: number of levels on which the memories are compared; the hook sets it before it calls `build`.
    """

    requires_memory = False
    requires_targets = False
    requires_objects = False
    num_levels = 1

    def build(self, teacher: Detector, student: Detector) -> None:
        """Create parameters whose shapes depend on the two models. Called once, before training."""

    def normalizer(self, teacher: Outputs, targets: Targets) -> Tensor | None:
        """Return what `forward` divides by, such as the number of objects or cells in the batch.

        The hook averages it over processes and over the batches of a step (`train.accumulate`) and passes it to
        `forward`, so that the gradients are those of the joint batch. None, the default, is for means over images.
        """
        return None

    def forward(
        self, teacher: Outputs, student: Outputs, targets: Targets, normalizer: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return scalar losses by name. The log calls them `loss_<name of the loss in the config>_<name>`.

        Outputs that the loss does not require are None.

        Args:
            normalizer: passed only if the method `normalizer` returns one.
        """
        raise NotImplementedError

    def select(self, outputs: Outputs) -> Outputs:
        """Return only the outputs that the loss requires."""
        return Outputs(
            outputs.memory if self.requires_memory else None,
            outputs.object_predictions if self.requires_objects else None,
            outputs.target_predictions if self.requires_targets else None,
        )
