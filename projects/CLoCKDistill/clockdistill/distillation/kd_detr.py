"""KD-DETR (arXiv:2211.08071), to compare with: teacher and student decode the same queries, "distillation points".

The losses follow published summaries of the paper. They were compared with code that describes itself as official
(github.com/Myleswork/KD-DETR), but not with the paper's equations.

On every decoder layer, the loss of a point is a weighted sum of the divergence of the class scores, L1 and GIoU, times
the point's foreground rebalancing weight, the teacher's highest class score. The sum over points is divided by the sum
of these weights, as in `TargetAwareLogitLoss`. The scores are sigmoids, so their divergence is the sum of the Bernoulli
divergences of the classes.

The code differs from this module in five places: general points are drawn from a normal distribution; the divergence is
that of softmax scores with a temperature of 10, averaged over classes; the sum of the divergences is not divided by
that of the weights; L1 is the mean of the four coordinates; and all layers of the student but the last are compared
with the teacher's last.
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
