import itertools
import math

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou

from clockdistill.modeling import HungarianMatcher, Predictions, SetCriterion, Target, Targets


def random_case(layers=2, images=2, queries=5, classes=3, counts=(2, 3)):
    predictions = Predictions(
        torch.randn(layers, images, queries, classes), torch.rand(layers, images, queries, 4) * 0.4 + 0.2
    )
    targets = [Target(torch.randint(classes, (n,)), torch.rand(n, 4) * 0.4 + 0.2) for n in counts]
    return predictions, Targets(targets)


def giou(a, b):
    return generalized_box_iou(box_convert(a[None], "cxcywh", "xyxy"), box_convert(b[None], "cxcywh", "xyxy")).item()


def pair_cost(logits, box, label, target_box):
    p = logits[label].sigmoid().item()
    focal = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)
    return 2 * focal + 5 * (box - target_box).abs().sum().item() - 2 * giou(box, target_box)


def test_matcher_finds_the_cheapest_of_all_assignments():
    predictions, targets = random_case()
    matches = HungarianMatcher(2, 5, 2)(predictions, targets)
    for layer, (image, query, target) in enumerate(matches):
        for b, (labels, boxes, _) in enumerate(targets):
            mine = dict(zip(target[image == b].tolist(), query[image == b].tolist(), strict=True))
            assert sorted(mine) == list(range(len(labels)))

            def total(assigned, layer=layer, b=b, labels=labels, boxes=boxes):
                return sum(
                    pair_cost(predictions.logits[layer, b, q], predictions.boxes[layer, b, q], labels[t], boxes[t])
                    for t, q in enumerate(assigned)
                )

            best = min(itertools.permutations(range(5), len(labels)), key=total)
            assert tuple(mine[t] for t in range(len(labels))) == best


def test_matcher_handles_images_without_objects_and_diverged_predictions():
    predictions, targets = random_case(counts=(0, 2))
    predictions.logits[0] = float("nan")
    matches = HungarianMatcher(2, 5, 2)(predictions, targets)
    assert [len(image) for image, _, _ in matches] == [2, 2]


def share_inside(box, region):
    """Fraction of a box's area that lies in a region, both (cx, cy, w, h) and clipped to the image."""
    (x0, y0, x1, y1), (left, top, right, bottom) = (
        [min(max(v, 0), 1) for v in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)]
        for x, y, w, h in (box.tolist(), region.tolist())
    )
    width, height = max(0, min(x1, right) - max(x0, left)), max(0, min(y1, bottom) - max(y0, top))
    return width * height / ((x1 - x0) * (y1 - y0))


@pytest.mark.parametrize("regions", [None, (0, 0), (4, 0), (2, 3)])
def test_criterion_equals_a_loop(regions):
    predictions, targets = random_case(queries=12)
    predictions.boxes[..., 0] -= 0.2
    if regions:
        ignored = [Target(torch.randint(3, (n,)), torch.rand(n, 4) * 0.4 + 0.2) for n in regions]
        targets = Targets([target._replace(ignored=region) for target, region in zip(targets, ignored, strict=True)])
    criterion = SetCriterion(HungarianMatcher(2, 5, 2), 1, 5, 2)
    losses = criterion(predictions, targets)
    matches = criterion.matcher(predictions, targets)
    for layer, suffix in enumerate(("_0", "")):
        logits, boxes = predictions.logits[layer], predictions.boxes[layer]
        one_hot = torch.zeros_like(logits)
        l1 = overlap = 0.0
        for b, q, t in zip(*matches[layer], strict=True):
            one_hot[b, q, targets[b].labels[t]] = 1
            l1 += (boxes[b, q] - targets[b].boxes[t]).abs().sum()
            overlap += 1 - giou(boxes[b, q], targets[b].boxes[t])
        p = logits.sigmoid()
        focal = torch.where(one_hot == 1, 0.25 * (1 - p) ** 2 * -p.log(), 0.75 * p**2 * -(1 - p).log())
        matched = set(zip(*(index.tolist() for index in matches[layer][:2]), strict=True))
        spared = 0
        for b, q, c in itertools.product(*map(range, logits.shape)):
            for label, region in zip(*(targets[b].ignored or ((), ()))[:2], strict=True):
                if label == c and (b, q) not in matched and share_inside(boxes[b, q], region) > 0.5:
                    spared += focal[b, q, c] > 0
                    focal[b, q, c] = 0
        assert (spared > 0) == bool(regions and sum(regions))
        focal = focal.sum()
        torch.testing.assert_close(losses[f"loss_class{suffix}"], focal / 5)
        torch.testing.assert_close(losses[f"loss_bbox{suffix}"], 5 * l1 / 5)
        assert losses[f"loss_giou{suffix}"].item() == pytest.approx(2 * overlap / 5, rel=1e-4)


def test_without_objects_only_the_classification_loss_is_left():
    predictions, _ = random_case(images=1)
    predictions.boxes.requires_grad_()
    targets = Targets([Target(torch.zeros(0).long(), torch.zeros(0, 4))])
    losses = SetCriterion(HungarianMatcher(2, 5, 2), 1, 5, 2)(predictions, targets)
    assert losses["loss_class"] > 0
    assert losses["loss_bbox"] == losses["loss_giou"] == 0
    sum(losses.values()).backward()
    assert predictions.boxes.grad.abs().sum() == 0
