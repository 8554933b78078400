"""KD-DETR (arXiv:2211.08071), to compare with: teacher and student decode the same queries, "distillation points".

The losses follow published summaries of the paper and third-party code (github.com/Myleswork/KD-DETR). Neither the
equations nor the constants have been checked against the paper.

On every decoder layer, the loss of a point is a weighted sum of the divergence of the class scores, L1 and GIoU, times
the point's foreground rebalancing weight, the teacher's highest class score. The sum over points is divided by the sum
of these weights, as in `TargetAwareLogitLoss` but unlike in the summaries. The scores are sigmoids, so their divergence
is the sum of the Bernoulli divergences of the classes.
"""

from ..checks import checked, count
from ..modeling import Detector, Memory, Queries, Targets
from .logits import SharedQueriesLoss


class GeneralPointsLoss(SharedQueriesLoss):
    """General distillation points: queries at random places, drawn anew in every step.

    Args:
        num_points: number of points per image.
        weights: arguments of `LogitLoss`.
    """

    group = "points"

    @checked(num_points=count)
    def __init__(self, num_points: int, **weights):
        super().__init__(**weights)
        self.num_points = num_points

    def queries(
        self, teacher: Detector, memory: Memory, objects: Queries | None, targets: Targets
    ) -> dict[str, Queries]:
        return {"points": teacher.random_queries(memory, self.num_points)}


class SpecificPointsLoss(SharedQueriesLoss):
    """Specific distillation points: the teacher's object queries."""

    requires_objects = True
    group = "points"

    def queries(
        self, teacher: Detector, memory: Memory, objects: Queries | None, targets: Targets
    ) -> dict[str, Queries]:
        return {"points": objects}
