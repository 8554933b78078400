"""One-to-one assignment of predictions to objects (DETR, arXiv:2005.12872, Eq. 1)."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from ..checks import checked, fraction, not_negative
from .structures import Predictions, Targets


class HungarianMatcher:
    """Assignment of lowest total cost: focal class cost, L1 and GIoU of the boxes.

    Args:
        class_weight, l1_weight, giou_weight: weights of the three costs.
        alpha, gamma: constants of the focal loss; the class cost is its change when the class is present.
    """

    @checked(
        class_weight=not_negative,
        l1_weight=not_negative,
        giou_weight=not_negative,
        alpha=fraction,
        gamma=not_negative,
    )
    def __init__(
        self, class_weight: float, l1_weight: float, giou_weight: float, alpha: float = 0.25, gamma: float = 2.0
    ):
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.alpha = alpha
        self.gamma = gamma

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Targets) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return for every layer the indices of image, query and target (within the image), each (matches,)."""
        logits, boxes = predictions.logits.float(), predictions.boxes.float()
        matches = [([], [], []) for _ in range(len(logits))]
        for image, objects in enumerate(targets):
            costs = self.cost(logits[:, image], boxes[:, image], objects.labels, objects.boxes).cpu()
            for layer, cost in enumerate(costs):
                query, target = map(torch.as_tensor, linear_sum_assignment(cost))
                for column, index in zip(matches[layer], (torch.full_like(query, image), query, target), strict=True):
                    column.append(index)
        return [tuple(torch.cat(column).to(logits.device) for column in layer) for layer in matches]

    def cost(self, logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
        """Return the costs (E, Q, n) between logits (E, Q, K), boxes (E, Q, 4) and n targets."""
        p = logits.sigmoid()
        as_object = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        as_background = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        class_cost = (as_object - as_background)[..., labels]
        l1 = torch.cdist(boxes, target_boxes.expand(len(boxes), -1, -1), p=1)
        corners = box_convert(boxes.flatten(0, 1), "cxcywh", "xyxy")
        giou = generalized_box_iou(corners, box_convert(target_boxes, "cxcywh", "xyxy")).view_as(l1)
        cost = self.class_weight * class_cost + self.l1_weight * l1 - self.giou_weight * giou
        # if training diverged, let the trainer report the loss instead of SciPy the matrix
        return cost.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)
