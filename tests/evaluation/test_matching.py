"""Which predictions are right, against loops and against COCO's own numbers."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from torchvision.ops import box_iou

from clockdistill.evaluation.matching import Matches, evaluate_coco, match, worst_images
from clockdistill.evaluation.pictures.curves import precision_by_class

CLASSES = 3


def random_boxes(generator, count):
    corner = generator.uniform(0, 40, (count, 2))
    return np.concatenate((corner, corner + generator.uniform(10, 30, (count, 2))), 1)


def random_image(seed):
    generator = np.random.default_rng(seed)
    truth = random_boxes(generator, generator.integers(0, 5))
    annotations = [
        dict(bbox=box.tolist(), bbox_mode=BoxMode.XYXY_ABS, category_id=int(generator.integers(CLASSES)))
        for box in truth
    ]
    near = truth + generator.normal(0, 2, truth.shape)
    boxes = np.concatenate((near, random_boxes(generator, 3)))
    found = Instances((80, 80))
    found.pred_boxes = Boxes(torch.tensor(boxes).float())
    found.pred_classes = torch.tensor(generator.integers(0, CLASSES, len(boxes)))
    found.scores = torch.tensor(generator.permutation(len(boxes)) / 10 + 0.05)
    return dict(annotations=annotations), found


def by_loop(record, found, threshold):
    """Greedy: the surest prediction first takes the free object of its class that it overlaps most."""
    objects = torch.tensor([a["bbox"] for a in record["annotations"]]).reshape(-1, 4)
    labels = [a["category_id"] for a in record["annotations"]]
    free, wrong = set(range(len(labels))), [False] * len(found)
    for i in found.scores.argsort(descending=True).tolist():
        if found.scores[i] < threshold:
            continue
        overlaps = box_iou(found.pred_boxes.tensor[i : i + 1], objects)[0]
        fitting = [o for o in free if labels[o] == found.pred_classes[i] and overlaps[o] >= 0.5]
        if fitting:
            free.remove(max(fitting, key=lambda o: overlaps[o]))
        else:
            wrong[i] = True
    return [o in free for o in range(len(labels))], wrong


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_matches_equal_a_loop(threshold):
    records, found = zip(*map(random_image, range(40)), strict=True)
    for record, instances, m in zip(records, found, match(records, found, CLASSES, threshold), strict=True):
        missed, wrong = by_loop(record, instances, threshold)
        assert m.missed.tolist() == missed
        assert m.wrong.tolist() == wrong
        assert m.ignored.tolist() == (instances.scores < threshold).tolist()


def test_what_an_ignored_region_takes_is_neither_right_nor_wrong():
    record, found = random_image(1)
    region = dict(bbox=[0.0, 0.0, 80.0, 80.0], bbox_mode=BoxMode.XYXY_ABS, iscrowd=1)
    record["annotations"] += [region | dict(category_id=label) for label in range(CLASSES)]
    m = match([record], [found], CLASSES)[0]
    assert not m.wrong.any()
    assert m.ignored.any()
    assert not m.missed[-CLASSES:].any()


def test_worst_images_have_the_lowest_f1():
    def image(missed, wrong, right):
        flags = np.array([True] * wrong + [False] * right, bool)
        return Matches(np.array([True] * missed + [False] * right, bool), flags, np.zeros(len(flags), bool))

    images = [image(0, 0, 3), image(1, 1, 1), image(2, 0, 0), image(3, 1, 0), image(0, 0, 0), image(1, 0, 4)]
    f1 = [1.0, 0.5, 0.0, 0.0, 1.0, 8 / 9]
    assert [m.f1 for m in images] == pytest.approx(f1)
    assert worst_images([images], 4) == [3, 2, 1, 5]
    assert worst_images([images, images[::-1]], 1) == [2]


def test_precision_is_cocos():
    records, found = zip(*map(random_image, range(40)), strict=True)
    evaluation = evaluate_coco(records, found, CLASSES)
    curves = precision_by_class(evaluation)
    for label in range(CLASSES):
        pairs = []
        objects = 0
        for record, instances in zip(records, found, strict=True):
            _, wrong = by_loop(record, instances, 0.0)
            mine = (instances.pred_classes == label).nonzero().flatten().tolist()
            pairs += [(instances.scores[i].item(), not wrong[i]) for i in mine]
            objects += sum(a["category_id"] == label for a in record["annotations"])
        right = np.cumsum([r for _, r in sorted(pairs, key=lambda p: -p[0])])
        precision = right / np.arange(1, len(right) + 1)
        expected = [max(precision[right / objects >= recall], default=0.0) for recall in np.linspace(0, 1, 101)]
        # images of equal scores come in any order
        assert np.abs(np.array(curves[label]) - expected).mean() < 0.05
        assert np.mean(curves[label]) == pytest.approx(np.mean(expected), abs=0.03)
