"""DETRDistill (arXiv:2211.10156), to compare with: its three losses.

They were compared with the authors' code (github.com/BIVLab-USTC/DETRDistill, for Deformable DETR). Where that code is
known to differ from the paper, they follow published summaries of the paper. They have not been checked against the
paper's equations. The authors' code also has a contrastive loss of queries, which the summaries do not mention; it is
left out here.
"""

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from ..checks import checked, count, not_negative
from ..layers import at_least_float32
from ..modeling import Detector, Memory, Outputs, Predictions, Queries, Targets
from .base import DistillationLoss
from .logits import LogitLoss, gather_queries, spread_indices, spread_layers
from .memory import FeatureLoss


class HungarianLogitLoss(LogitLoss):
    """Hungarian-matching logit distillation: the teacher's predictions are the student's targets.

    On every decoder layer, the teacher's positive predictions, those matched to an object, are first matched to the
    student's predictions and compared in class, L1 and GIoU. Then the teacher's negative predictions, all others, are
    matched to the student's remaining predictions by their boxes, and only the boxes are compared. The positive terms
    are divided by the number of the teacher's positive predictions, and the negative terms by that of the negative
    ones. If the student has fewer queries than the teacher, some predictions have no match and no loss.

    The authors' code matches all predictions at once, compares the classes of all of them by cross-entropy, and divides
    everything by the number of all matches. The divergence here has the same gradient as the cross-entropy, but is zero
    if the predictions are equal.

    Args:
        class_weight, l1_weight, giou_weight: weights of the losses and of the costs of the matching. Both the class
            loss and the class cost are sums over the classes.
    """

    requires_objects = True

    def __init__(self, class_weight: float, l1_weight: float, giou_weight: float):
        super().__init__(class_weight, l1_weight, giou_weight, weight_by_confidence=False)

    def build(self, teacher: Detector, student: Detector) -> None:
        self.matcher = student.criterion.matcher

    def positives(self, predictions: Predictions, targets: Targets) -> Tensor:
        """Return which predictions are matched to an object, (E, B, Q)."""
        positive = torch.zeros(predictions.logits.shape[:3], dtype=torch.bool, device=predictions.logits.device)
        for layer, (image, query, _) in enumerate(self.matcher(predictions, targets)):
            positive[layer, image, query] = True
        return positive

    def normalizer(self, teacher: Outputs, targets: Targets) -> Tensor:
        """Return the numbers of positive and negative predictions on each layer of the teacher, (2, E)."""
        positive = self.positives(teacher.object_predictions, targets)
        return torch.stack((positive, ~positive)).sum((2, 3))

    def forward(
        self, teacher: Outputs, student: Outputs, targets: Targets, normalizer: Tensor | None = None
    ) -> dict[str, Tensor]:
        if normalizer is None:
            normalizer = self.normalizer(teacher, targets)
        student_predictions = student.object_predictions
        depth = len(student_predictions.logits)
        positive_sum, negative_sum = normalizer[:, spread_indices(normalizer.shape[1], depth)]
        predictions = spread_layers(teacher.object_predictions, depth)
        positive = self.positives(predictions, targets)
        query_of = self.match(predictions, student_predictions, positive)
        matched = gather_queries(student_predictions, query_of)
        valid = query_of >= 0
        positives = self.compare(predictions, matched, valid & positive, positive_sum)
        negatives = self.compare(predictions, matched, valid & ~positive, negative_sum)
        del negatives["class"]
        terms = {"positive": positives, "negative": negatives}
        return {f"{kind}_{name}": value for kind, losses in terms.items() for name, value in losses.items()}

    @torch.no_grad()
    def match(self, teacher: Predictions, student: Predictions, positive: Tensor) -> Tensor:
        """Return the student's query for each of the teacher's, or -1, (E, B, Q), given which are positive."""
        costs = torch.stack([self.costs(*layer) for layer in zip(*teacher, *student, strict=True)]).cpu()
        query_of = torch.full(positive.shape, -1)
        for (class_cost, box_cost), is_positive, queries in zip(
            costs.flatten(0, 1), positive.flatten(0, 1).cpu(), query_of.flatten(0, 1), strict=True
        ):
            free = torch.ones(len(class_cost), dtype=torch.bool)
            for mine, cost in ((is_positive, class_cost + box_cost), (~is_positive, box_cost)):
                rows, columns = free.nonzero()[:, 0], mine.nonzero()[:, 0]
                row, column = linear_sum_assignment(cost[rows][:, columns])
                queries[columns[column]] = rows[row]
                free[rows[row]] = False
        return query_of.to(positive.device)

    def costs(self, teacher_logits: Tensor, teacher_boxes: Tensor, logits: Tensor, boxes: Tensor) -> Tensor:
        """Return the class costs and box costs of a layer between the student's and the teacher's predictions.

        Args:
            teacher_logits, teacher_boxes: (B, Q, ...).
            logits, boxes: the student's.

        Returns:
            (B, 2, student's Q, teacher's Q).
        """
        teacher_logits, teacher_boxes, logits, boxes = (
            x.float() for x in (teacher_logits, teacher_boxes, logits, boxes)
        )
        costs = []
        for t, t_box, s, s_box in zip(teacher_logits, teacher_boxes, logits, boxes, strict=True):
            with without_autocast(s):
                divergence = cross_entropy(s, t) - cross_entropy(t, t).diagonal()
            giou = generalized_box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (s_box, t_box)))
            box_cost = self.l1_weight * torch.cdist(s_box, t_box, p=1) - self.giou_weight * giou
            costs.append(torch.stack((self.class_weight * divergence, box_cost)))
        # if training diverged, let the trainer report the loss instead of SciPy the matrix
        return torch.stack(costs).nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)


def without_autocast(x: Tensor) -> torch.autocast:
    """Return a context in which matrix products keep the precision of a tensor like this."""
    return torch.autocast(x.device.type, enabled=False)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy of all pairs of logits (n, K) and targets' logits (m, K), summed over K."""
    p = targets.sigmoid()
    return -(F.logsigmoid(logits) @ p.T + F.logsigmoid(-logits) @ (1 - p).T)


class TargetAwareFeatureLoss(FeatureLoss):
    """Target-aware feature distillation: the distance of the maps, masked to cells that resemble the teacher's queries.

    Each decoder layer of the teacher has a mask. In a cell, it is the sum over the teacher's queries of their quality
    times the cosine similarity of their content and the cell's features, at least 0.01, divided by its maximum over the
    cells of the level and image. The quality of a query is its highest class score times its box's highest IoU with an
    object, or the score alone in an image without objects. The loss is the mean over cells and channels of the squared
    masked difference, summed over the teacher's layers and the levels.

    In the authors' code, padding counts, a query counts twice if two of its classes are among the highest scores, and
    both models have the same width.

    Args:
        weight: factor of the loss.
        num_queries: number of highest-scoring queries that make the mask.
        feature: see `FeatureLoss`.
    """

    requires_objects = True

    @checked(weight=not_negative, num_queries=count)
    def __init__(self, weight: float, num_queries: int, feature: str = "backbone"):
        super().__init__(feature)
        self.weight = weight
        self.num_queries = num_queries

    def normalizer(self, teacher: Outputs, targets: Targets) -> Tensor:
        """Return the number of values that are compared on each level, (levels,)."""
        levels = teacher.memory.split(~teacher.memory.padding_mask)
        return torch.stack([level.sum() for level in levels]) * self.maps(teacher).shape[-1]

    def forward(
        self, teacher: Outputs, student: Outputs, targets: Targets, normalizer: Tensor | None = None
    ) -> dict[str, Tensor]:
        if normalizer is None:
            normalizer = self.normalizer(teacher, targets)
        weight = self.masks(teacher, targets).square().sum(0)
        levels = teacher.memory.split(weight * self.squared_distance(teacher, student))
        return {"mask": self.weight * (torch.stack([level.sum() for level in levels]) / normalizer).sum()}

    def masks(self, teacher: Outputs, targets: Targets) -> Tensor:
        """Return the mask of each of the teacher's layers, (E, B, N), zero on padding."""
        memory = teacher.memory
        quality = self.qualities(teacher.object_predictions, targets)
        content = F.normalize(at_least_float32(teacher.object_content), dim=-1)
        features = F.normalize(at_least_float32(self.maps(teacher)), dim=-1)
        with without_autocast(features):
            similarity = torch.einsum("bnc,ebc->ebn", features, torch.einsum("ebqc,ebq->ebc", content, quality))
        similarity = similarity.clamp(min=1e-2).masked_fill(memory.padding_mask, 0)
        levels = [level / level.amax(1, keepdim=True) for level in memory.split(similarity.movedim(0, -1))]
        return torch.cat(levels, 1).movedim(-1, 0)

    def qualities(self, predictions: Predictions, targets: Targets) -> Tensor:
        """Return the quality of the best-scored queries, (E, B, Q), zero for the others."""
        scores = at_least_float32(predictions.logits).sigmoid().amax(-1)
        best = scores.topk(min(self.num_queries, scores.shape[-1]), sorted=False)
        quality = torch.zeros_like(scores).scatter(-1, best.indices, best.values)
        corners = box_convert(at_least_float32(predictions.boxes), "cxcywh", "xyxy")
        for image, target in enumerate(targets):
            if len(target.boxes):
                objects = box_convert(target.boxes.to(corners), "cxcywh", "xyxy")
                overlap = box_iou(corners[:, image].flatten(0, 1), objects).amax(-1)
                quality[:, image] *= overlap.view_as(quality[:, image])
        return quality


class QueryPriorLoss(DistillationLoss):
    """Query-prior assignment distillation: the student's detection loss for the teacher's object queries.

    The student decodes these queries in a group of their own. On each layer, a query is assigned to the same object as
    in the teacher. The authors' code computes the teacher's assignment too, but does not use it: it matches the
    student's own predictions.

    Args:
        weight: factor of the loss.
    """

    requires_objects = True

    @checked(weight=not_negative)
    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def build(self, teacher: Detector, student: Detector) -> None:
        self.criterion = student.criterion

    def queries(
        self, teacher: Detector, memory: Memory, objects: Queries | None, targets: Targets
    ) -> dict[str, Queries]:
        return {"teacher": objects}

    def forward(self, teacher: Outputs, student: Outputs, targets: Targets) -> dict[str, Tensor]:
        predictions = Predictions(*map(at_least_float32, student.extra_predictions["teacher"]))
        matches = self.criterion.matcher(spread_layers(teacher.object_predictions, len(predictions.logits)), targets)
        layers = [
            self.criterion.layer_losses(*layer, targets, match, padding=None)
            for *layer, match in zip(*predictions, matches, strict=True)
        ]
        factor = self.weight / self.criterion.num_objects(targets)
        return {name.removeprefix("loss_"): factor * sum(layer[name] for layer in layers) for name in layers[0]}
