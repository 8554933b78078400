"""Matches and worst images against brute force, and curves against the numbers of pycocotools."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from torchvision.ops import box_iou

from clockdistill.evaluation.matching import Matches, evaluate_coco, match, worst_images
from clockdistill.evaluation.pictures import curves

CLASSES = 3


def random_images(count, generator):
    records, results = [], []
    for _ in range(count):
        objects, predictions = generator.integers(0, 6, 2)
        corners = generator.uniform(0, 60, (objects + predictions, 2))
        boxes = np.concatenate((corners, corners + generator.uniform(15, 40, corners.shape)), 1)
        # some predictions are shifted objects
        for i in range(min(objects, predictions)):
            boxes[objects + i] = boxes[i] + generator.normal(0, 3, 4)
        labels = generator.integers(0, CLASSES, len(boxes))
        labels[objects : objects + min(objects, predictions)] = labels[: min(objects, predictions)]
        records.append(
            {
                "annotations": [
                    dict(bbox=b, bbox_mode=BoxMode.XYXY_ABS, category_id=int(c), iscrowd=int(generator.random() < 0.25))
                    for b, c in zip(boxes[:objects].tolist(), labels, strict=False)
                ]
            }
        )
        instances = Instances((100, 100))
        instances.pred_boxes = Boxes(torch.tensor(boxes[objects:]).float().reshape(-1, 4))
        instances.pred_classes = torch.tensor(labels[objects:])
        instances.scores = torch.tensor(generator.uniform(0, 1, predictions)).float()
        results.append(instances)
    return records, results


def brute_force(record, instances, threshold):
    """By score, each prediction takes the free object of its class with the highest IoU, else an ignored region."""
    annotations = record["annotations"]
    fn = [not a["iscrowd"] for a in annotations]
    fp, ignored = [False] * len(instances), [score < threshold for score in instances.scores.tolist()]
    for i in sorted(range(len(instances)), key=lambda i: -instances.scores[i]):
        if ignored[i]:
            continue
        box, best, chosen = instances.pred_boxes.tensor[i].double(), 0.5, None
        for j, a in enumerate(annotations):
            if a["category_id"] == instances.pred_classes[i] and fn[j]:
                overlap = box_iou(box[None], torch.tensor(a["bbox"], dtype=torch.float64)[None]).item()
                if overlap >= best:
                    best, chosen = overlap, j
        if chosen is not None:
            fn[chosen] = False
            continue
        for a in annotations:
            if a["iscrowd"] and a["category_id"] == instances.pred_classes[i]:
                x0, y0, x1, y1 = a["bbox"]
                w, h = min(box[2], x1) - max(box[0], x0), min(box[3], y1) - max(box[1], y0)
                area = (box[2] - box[0]) * (box[3] - box[1])
                ignored[i] |= bool(w > 0 and h > 0 and w * h / area >= 0.5)
        fp[i] = not ignored[i]
    return fn, fp, ignored


def test_matches_equal_brute_force():
    records, predictions = random_images(150, np.random.default_rng(0))
    outcomes = [0, 0, 0]
    for record, instances, matches in zip(records, predictions, match(records, predictions, CLASSES, 0.3), strict=True):
        expected = brute_force(record, instances, 0.3)
        for i, (given, target) in enumerate(
            zip((matches.false_negatives, matches.false_positives, matches.ignored), expected, strict=True)
        ):
            assert given.tolist() == target
            outcomes[i] += sum(target)
    assert min(outcomes) > 20


def test_worst_images_have_the_lowest_mean_f1_then_the_most_errors():
    generator = np.random.default_rng(1)

    def random_matches():
        fn, fp, ignored = (generator.random(generator.integers(0, 4)) < 0.5 for _ in range(3))
        return Matches(fn, fp, np.resize(ignored, len(fp)) & ~fp if len(ignored) else fp & False)

    models = [[random_matches() for _ in range(60)] for _ in range(2)]
    keys = []
    for i in range(60):
        f1, errors = 0, 0
        for m in (model[i] for model in models):
            tp = sum(1 for fp, ignored in zip(m.false_positives, m.ignored, strict=True) if not fp | ignored)
            wrong = sum(m.false_negatives) + sum(m.false_positives)
            f1, errors = f1 + (1 if tp + wrong == 0 else 2 * tp / (2 * tp + wrong)), errors + wrong
        keys.append((round(f1 / 2, 9), -errors, i))
    assert worst_images(models, 7) == [i for _, _, i in sorted(keys)[:7]]


def test_curves_show_the_precision_of_pycocotools(tmp_path, monkeypatch):
    records, predictions = random_images(40, np.random.default_rng(2))
    evaluation = evaluate_coco(records, predictions, CLASSES)
    figures = []
    monkeypatch.setattr(curves.Figure, "savefig", lambda self, path: figures.append(self))
    curves.plot_precision_recall({"model": evaluation}, ["a", "b", "c"], tmp_path / "unused.png")
    together, *single = (axes.lines[0].get_ydata() for axes in figures[0].axes if axes.lines)
    precision = evaluation.eval["precision"]
    assert precision.shape == (1, 101, CLASSES, 1, 1)
    for label in range(CLASSES):
        assert single[label] == pytest.approx(precision[0, :, label, 0, 0])
    assert together == pytest.approx(precision[0, :, :, 0, 0].mean(1))
