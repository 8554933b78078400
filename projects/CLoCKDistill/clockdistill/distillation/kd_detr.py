"""KD-DETR (arXiv:2211.08071), to compare with: teacher and student decode the same queries, "distillation points".

The losses follow published summaries of the paper and third-party code (github.com/Myleswork/KD-DETR). Neither the
equations nor the constants have been checked against the paper.
"""

from torch import Tensor

from ..checks import checked, count
from ..modeling import Detector, Memory, Outputs, Queries, Targets
from .logits import LogitLoss


class PointsLoss(LogitLoss):
    """Base class of losses on one group of distillation points, which `queries` returns as `points`.

    On every decoder layer, the loss of a point is a weighted sum of the divergence of the class scores, L1 and GIoU,
    times the point's foreground rebalancing weight, the teacher's highest class score. The sum over points is divided
    by the sum of these weights, as in `TargetAwareLogitLoss` but unlike in the summaries. The scores are sigmoids, so
    their divergence is the sum of the Bernoulli divergences of the classes.
    """

    def normalizer(self, teacher: Outputs, targets: Targets) -> Tensor:
        """Return the sum of the weights for each layer of the teacher."""
        return self.weights(teacher.extra_predictions["points"]).sum((1, 2))

    def forward(
        self, teacher: Outputs, student: Outputs, targets: Targets, normalizer: Tensor | None = None
    ) -> dict[str, Tensor]:
        if normalizer is None:
            normalizer = self.normalizer(teacher, targets)
        return self.compare(teacher.extra_predictions["points"], student.extra_predictions["points"], True, normalizer)


class GeneralPointsLoss(PointsLoss):
    """General distillation points: queries at random places, drawn anew in every step.

    Args:
        num_points: number of points per image.
        weights: arguments of `LogitLoss`.
    """

    @checked(num_points=count)
    def __init__(self, num_points: int, **weights):
        super().__init__(**weights)
        self.num_points = num_points

    def queries(
        self, teacher: Detector, memory: Memory, objects: Queries | None, targets: Targets
    ) -> dict[str, Queries]:
        return {"points": teacher.random_queries(memory, self.num_points)}


class SpecificPointsLoss(PointsLoss):
    """Specific distillation points: the teacher's object queries."""

    requires_objects = True

    def queries(
        self, teacher: Detector, memory: Memory, objects: Queries | None, targets: Targets
    ) -> dict[str, Queries]:
        return {"points": objects}
