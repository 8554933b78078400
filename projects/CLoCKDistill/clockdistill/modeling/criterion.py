"""Detection losses of the DETR family: focal classification, L1 and GIoU, on every decoder layer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor
from torchvision.ops import box_convert, sigmoid_focal_loss

from ..checks import checked, fraction, not_negative
from ..layers import giou_loss
from .matcher import HungarianMatcher
from .structures import Predictions, Targets


def average_over_ranks(total: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, to normalize losses as if on the joint batch."""
    world = comm.get_world_size()
    if world > 1:
        total = total.clone()
        torch.distributed.all_reduce(total)
    return total / world


class SetCriterion:
    """Losses between predictions and objects, each summed and divided by the number of objects.

    Args:
        matcher: assigns predictions to objects if no assignment is given.
        class_weight, l1_weight, giou_weight: weights of the three losses.
        alpha, gamma: constants of the focal loss (arXiv:1708.02002).
        ignore_overlap: an unmatched prediction has no loss for a class if more than this fraction of its area lies in
            one region ignored for that class. COCO's evaluation uses the same criterion for crowds (0.5 and above),
            and KITTI's development kit for DontCare regions (0.5, for cars 0.7).
    """

    @checked(
        class_weight=not_negative,
        l1_weight=not_negative,
        giou_weight=not_negative,
        alpha=fraction,
        gamma=not_negative,
        ignore_overlap=fraction,
    )
    def __init__(
        self,
        matcher: HungarianMatcher,
        class_weight: float,
        l1_weight: float,
        giou_weight: float,
        alpha: float = 0.25,
        gamma: float = 2.0,
        ignore_overlap: float = 0.5,
    ):
        self.matcher = matcher
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.alpha = alpha
        self.gamma = gamma
        self.ignore_overlap = ignore_overlap

    def joint_normalizer(self, parts: Sequence[Targets]) -> Tensor:
        """Return what to divide the losses of each part by, so that their mean is the loss of the joint batch.

        This is the number of objects per part, averaged over parts and ranks. All parts have at least 1 per rank.
        """
        total = torch.stack([(~targets.padding).sum() for targets in parts]).sum().float()
        return average_over_ranks(total).clamp(min=1) / len(parts)

    def num_objects(self, targets: Targets) -> Tensor:
        """Return what the losses of a batch are divided by."""
        return self.joint_normalizer([targets]) if targets.num_objects is None else targets.num_objects

    def __call__(
        self,
        predictions: Predictions,
        targets: Targets,
        suffix: str = "",
        matches: tuple[Tensor, Tensor, Tensor] | None = None,
        padding: Tensor | None = None,
        repeats: int = 1,
    ) -> dict[str, Tensor]:
        """
        Args:
            suffix: appended to the names, before the number of an auxiliary layer.
            matches: indices of image, query and target, the same for all layers; by default those of the matcher.
            padding: (B, Q), True on queries without a loss.
            repeats: number of queries per object.

        Returns:
            `loss_class`, `loss_bbox`, `loss_giou` of the last layer, and with `_0`, `_1`, … of the layers before it.
        """
        layers = len(predictions.logits)
        per_layer = self.matcher(predictions, targets) if matches is None else [matches] * layers
        normalizer = self.num_objects(targets) * repeats
        losses = {}
        for layer, (logits, boxes) in enumerate(zip(*predictions, strict=True)):
            name = suffix if layer == layers - 1 else f"{suffix}_{layer}"
            layer_losses = self.layer_losses(logits.float(), boxes.float(), targets, per_layer[layer], padding)
            losses.update({f"{key}{name}": value / normalizer for key, value in layer_losses.items()})
        return losses

    def layer_losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Targets,
        matches: tuple[Tensor, Tensor, Tensor],
        padding: Tensor | None,
    ) -> dict[str, Tensor]:
        image, query, target = matches
        matched_labels, matched_boxes = targets.labels[image, target], targets.boxes[image, target]

        one_hot = torch.zeros_like(logits)
        one_hot[image, query] = F.one_hot(matched_labels, logits.shape[-1]).to(logits)
        class_loss = sigmoid_focal_loss(logits, one_hot, self.alpha, self.gamma)
        if padding is not None:
            class_loss = class_loss.masked_fill(padding[..., None], 0)
        ignored = self.in_ignored_regions(boxes.detach(), targets, logits.shape[-1])
        if ignored is not None:
            ignored[image, query] = False
            class_loss = class_loss.masked_fill(ignored, 0)
        predicted = boxes[image, query]
        return {
            "loss_class": self.class_weight * class_loss.sum(),
            "loss_bbox": self.l1_weight * (predicted - matched_boxes).abs().sum(),
            "loss_giou": self.giou_weight * giou_loss(predicted, matched_boxes).sum(),
        }

    def in_ignored_regions(self, boxes: Tensor, targets: Targets, num_classes: int) -> Tensor | None:
        """Return (B, Q, K), True if a box of (B, Q, 4) lies in a region ignored for the class; None without regions."""
        if targets.ignored is None:
            return None
        labels, regions, padding = targets.ignored.labels, targets.ignored.boxes, targets.ignored.padding
        # detections are clipped to the image before they are evaluated
        boxes, regions = (box_convert(b, "cxcywh", "xyxy").clamp(0, 1)[:, :, None] for b in (boxes, regions))
        regions = regions.transpose(1, 2)
        low, high = torch.maximum(boxes[..., :2], regions[..., :2]), torch.minimum(boxes[..., 2:], regions[..., 2:])
        area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
        covered = (high - low).clamp(min=0).prod(-1) > self.ignore_overlap * area
        of_class = F.one_hot(labels, num_classes).masked_fill(padding[..., None], 0)
        return covered.float() @ of_class.float() > 0
