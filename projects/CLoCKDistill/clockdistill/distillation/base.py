"""Base class of the distillation losses."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import UserError
from ..modeling import Detector, Memory, Outputs, Predictions, Queries, Targets


class Groups(dict[str, Predictions]):
    """Predictions for a loss's groups of queries; an error names the loss if it uses another group."""

    def __init__(self, loss: str, groups: dict[str, Predictions]):
        super().__init__(groups)
        self.loss = loss

    def __missing__(self, group: str) -> Predictions:
        raise UserError(
            f"distillation.losses.{self.loss} uses predictions for the queries {group!r}, which it does not make: "
            "return them from its method `queries`"
        )


class DistillationLoss(nn.Module):
    """Compares the outputs of teacher and student. Subclasses implement `forward`.

    A loss may own parameters, such as a projection. They are trained with the student and saved for `--resume`, but are
    not part of the student's checkpoint. All of them must contribute to the loss in every step.

    Attributes:
        requires_memory: the loss gets `Outputs.memory` of both models, with the levels whose strides they share, in the
            same order. If they share no stride but have equally many levels, it gets all of them, paired in order;
            otherwise training does not start.
        requires_targets: the loss gets `Outputs.target_predictions` of both models.
        requires_objects: the loss gets `Outputs.object_predictions` of both models, and `Outputs.object_content` of the
            teacher.
        level_scales: for each pair of levels that is compared, the student's stride divided by the teacher's; the hook
            sets them before it calls `build`.
    """

    requires_memory = False
    requires_targets = False
    requires_objects = False
    level_scales: Sequence[float] = (1.0,)

    @property
    def num_levels(self) -> int:
        """Number of levels on which the memories are compared."""
        return len(self.level_scales)

    def build(self, teacher: Detector, student: Detector) -> None:
        """Create parameters whose shapes depend on the two models. Called once, before training."""

    def queries(
        self, teacher: Detector, memory: Memory, objects: Queries | None, targets: Targets
    ) -> dict[str, Queries]:
        """Return groups of queries, by name, for the decoders of both models.

        The loss gets the predictions of both models in `Outputs.extra_predictions`. A group attends to itself alone.
        The student gets it in its own width. Draw random numbers from torch's global generator, which the trainer seeds
        in every step.

        Args:
            memory: the teacher's, with all its levels.
            objects: the teacher's object queries, if the loss requires objects. Return them to let the student decode
                them too; the teacher decodes them once.

        Returns:
            queries of the teacher's width, with the positions that it needs; none by default.
        """
        return {}

    @property
    def makes_queries(self) -> bool:
        """Whether the class overrides `queries`."""
        return type(self).queries is not DistillationLoss.queries

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

    def select(self, outputs: Outputs, name: str) -> Outputs:
        """Return only the outputs that the loss requires, given its name in the config."""
        groups = {"targets": "targets"} if self.requires_targets else {}
        groups |= {key: key.removeprefix(f"{name}.") for key in outputs.extra_predictions if key.startswith(f"{name}.")}
        return Outputs(
            outputs.memory if self.requires_memory else None,
            outputs.object_predictions if self.requires_objects else None,
            Groups(name, {group: outputs.extra_predictions[key] for key, group in groups.items()}),
            outputs.object_content if self.requires_objects else None,
        )
