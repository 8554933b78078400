import itertools
import math

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou

from clockdistill.modeling import HungarianMatcher, Predictions, SetCriterion, Target


def random_case(layers=2, images=2, queries=5, classes=3, counts=(2, 3)):
    predictions = Predictions(
        torch.randn(layers, images, queries, classes), torch.rand(layers, images, queries, 4) * 0.4 + 0.2
    )
    targets = [Target(torch.randint(classes, (n,)), torch.rand(n, 4) * 0.4 + 0.2) for n in counts]
    return predictions, targets


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


def test_matcher_survives_images_without_objects_and_diverged_predictions():
    predictions, targets = random_case(counts=(0, 2))
    predictions.logits[0] = float("nan")
    matches = HungarianMatcher(2, 5, 2)(predictions, targets)
    assert [len(image) for image, _, _ in matches] == [2, 2]


def test_criterion_equals_a_loop():
    predictions, targets = random_case()
    criterion = SetCriterion(HungarianMatcher(2, 5, 2), 1, 5, 2)
    losses = criterion(predictions, targets)
    matches = criterion.matcher(predictions, targets)
    for layer, suffix in enumerate(("_0", "")):
        logits, boxes = predictions.logits[layer], predictions.boxes[layer]
        wanted = torch.zeros_like(logits)
        l1 = overlap = 0.0
        for b, q, t in zip(*matches[layer], strict=True):
            wanted[b, q, targets[b].labels[t]] = 1
            l1 += (boxes[b, q] - targets[b].boxes[t]).abs().sum()
            overlap += 1 - giou(boxes[b, q], targets[b].boxes[t])
        p = logits.sigmoid()
        focal = torch.where(wanted == 1, 0.25 * (1 - p) ** 2 * -p.log(), 0.75 * p**2 * -(1 - p).log()).sum()
        torch.testing.assert_close(losses[f"loss_class{suffix}"], focal / 5)
        torch.testing.assert_close(losses[f"loss_bbox{suffix}"], 5 * l1 / 5)
        assert losses[f"loss_giou{suffix}"].item() == pytest.approx(2 * overlap / 5, rel=1e-4)


def share_within(box, region):
    """Of a box's area, counted in a grid of points."""
    (cx, cy, w, h), (rx, ry, rw, rh) = box.tolist(), region.tolist()
    steps = [(i + 0.5) / 200 - 0.5 for i in range(200)]
    columns = sum(abs(cx + s * w - rx) < rw / 2 for s in steps)
    rows = sum(abs(cy + s * h - ry) < rh / 2 for s in steps)
    return columns * rows / 200**2


def test_predictions_in_ignored_regions_are_not_taught_to_be_background():
    predictions, (first, second) = random_case(layers=1, queries=40)
    predictions.logits.requires_grad_()
    regions = torch.rand(3, 4) * 0.4 + 0.1
    targets = [first._replace(ignored=regions), second._replace(ignored=torch.zeros(0, 4))]
    criterion = SetCriterion(HungarianMatcher(2, 5, 2), 1, 5, 2)
    matched = {(b.item(), q.item()) for b, q, _ in zip(*criterion.matcher(predictions, targets)[0], strict=True)}
    criterion(predictions, targets)["loss_class"].backward()
    silent = (predictions.logits.grad[0] == 0).all(-1)
    shares = [max(share_within(box, region) for region in regions) for box in predictions.boxes[0, 0]]
    expected = [share > 0.5 and (0, q) not in matched for q, share in enumerate(shares)]
    assert silent[0].tolist() == expected
    assert 0 < sum(expected) < 40 - 2
    assert not silent[1].any()


def test_no_objects_leave_finite_classification_loss_alone():
    predictions, _ = random_case(images=1)
    predictions.boxes.requires_grad_()
    targets = [Target(torch.zeros(0).long(), torch.zeros(0, 4))]
    losses = SetCriterion(HungarianMatcher(2, 5, 2), 1, 5, 2)(predictions, targets)
    assert losses["loss_class"] > 0
    assert losses["loss_bbox"] == losses["loss_giou"] == 0
    sum(losses.values()).backward()
    assert predictions.boxes.grad.abs().sum() == 0
