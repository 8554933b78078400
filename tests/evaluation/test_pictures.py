import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from clockdistill.errors import UserError
from clockdistill.evaluation import pictures
from clockdistill.evaluation.pictures import curves as curves_module
from clockdistill.evaluation.pictures.curves import read_metrics
from clockdistill.evaluation.pictures.sheet import TITLE_HEIGHT as TITLE
from helpers.models import random_batch, tiny

HEIGHT, WIDTH = 60, 960  # wide enough not to be enlarged
CLASSES = ["Car", "Van"]


def truth_of(*boxes, classes=None, ignored=()):
    """A record with objects and, after them, ignored regions."""
    labels = [*(classes or [0] * len(boxes)), *(0 for _ in ignored)]
    xyxy = BoxMode.XYXY_ABS
    return {
        "annotations": [
            dict(bbox=box, bbox_mode=xyxy, category_id=label, iscrowd=int(i >= len(boxes)))
            for i, (box, label) in enumerate(zip([*boxes, *ignored], labels, strict=True))
        ]
    }


def predicted(*boxes, classes=None, scores=None):
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.tensor(boxes).float().reshape(-1, 4))
    instances.pred_classes = torch.tensor(classes or [0] * len(boxes), dtype=torch.long)
    instances.scores = torch.tensor(scores or [0.9] * len(boxes))
    return instances


GRAY = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)


def draw(truth, predictions, image=GRAY, names=CLASSES):
    return pictures.draw_comparison(image, truth, predictions, names)


def panel(picture, index, height=HEIGHT):
    top = index * (height + TITLE) + TITLE
    return picture[top : top + height].astype(int)


def changed(picture, index):
    """Mask of the pixels where a panel differs from the image by more than rounding."""
    return (np.abs(panel(picture, index) - GRAY) > 8).any(-1)


def label_of(x0, y0):
    """Mask of the label of a box."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0 - 16 : y0, x0 - 2 : x0 + 20] = True
    return mask


def ring(x0, y0, x1, y1, margin):
    """Mask of the pixels within `margin` of the border of a box."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0 - margin : y1 + margin, x0 - margin : x1 + margin] = True
    mask[y0 + margin : y1 - margin, x0 + margin : x1 - margin] = False
    return mask


def test_box_is_drawn_on_its_border_and_nowhere_else():
    picture = draw(truth_of([100, 20, 200, 50]), {})
    assert picture.shape == (HEIGHT + TITLE, WIDTH, 3)
    assert picture.dtype == np.uint8
    drawn = changed(picture, 0)
    assert not drawn[~ring(100, 20, 200, 50, 2) & ~label_of(100, 20)].any()
    assert drawn[label_of(100, 20)].any()
    assert drawn[20, 103:197].all()
    assert drawn[50, 103:197].all()
    assert drawn[23:47, 100].all()
    assert drawn[23:47, 200].all()


def test_classes_differ_in_color():
    picture = panel(draw(truth_of([100, 20, 200, 50], [300, 20, 400, 50], classes=[0, 1]), {}), 0)
    assert picture[20, 150].argmax() == 2  # light blue
    assert picture[20, 350].argmin() == 2  # orange


def test_small_image_is_enlarged_and_its_boxes_with_it():
    image = np.full((20, 320, 3), 100, np.uint8)
    truth = truth_of([100, 5, 120, 15])
    picture = panel(draw(truth, {}, image), 0, height=60)
    assert picture.shape == (60, 960, 3)
    drawn = (np.abs(picture - 100) > 60).any(-1)
    xs, ys = np.nonzero(drawn[35])[0], np.nonzero(drawn[:, 345])[0]
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == pytest.approx((300, 360, 15, 45), abs=2)


@pytest.mark.parametrize(("height", "width"), [(375, 1242), (87, 804), (61, 807)])
def test_every_pixel_of_the_image_is_in_the_picture(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    picture = draw(truth_of(), {}, image)
    assert picture.shape == (height + TITLE, width, 3)
    assert (panel(picture, 0, height) == image).all()


def test_only_confident_predictions_are_drawn_in_the_panel_of_their_model():
    predictions = {
        "a": predicted([100, 20, 200, 50], [300, 20, 400, 50], scores=[0.31, 0.29]),
        "b": predicted([500, 20, 600, 50]),
    }
    picture = draw(truth_of(), predictions)
    assert not changed(picture, 0).any()
    assert changed(picture, 1)[50, 103:197].mean() > 0.5  # a false positive is dotted
    assert not changed(picture, 1)[:, 250:].any()
    assert changed(picture, 2)[50, 503:597].mean() > 0.5
    assert not changed(picture, 2)[:, :450].any()


def red(picture, index):
    r, g, b = np.moveaxis(panel(picture, index), -1, 0)
    return (r > 200) & (g < 110) & (b < 110)


def test_false_negative_is_outlined_in_red_in_the_panel_of_its_model():
    box, other = [100, 20, 200, 50], [300, 20, 400, 50]
    picture = draw(truth_of(box, other), {"a": predicted(box), "b": predicted(box, other)})
    assert not red(picture, 0).any()
    assert not red(picture, 2).any()
    outline = red(picture, 1)
    assert not outline[~ring(*other, 2)].any()
    assert 0.3 < outline[20, 303:397].mean() < 0.9  # dashed


def test_ignored_region_is_drawn_only_with_the_ground_truth():
    picture = draw(truth_of(ignored=[[100, 20, 200, 50]]), {"a": predicted()})
    assert 0.2 < changed(picture, 0)[20, 103:197].mean() < 0.9
    assert not changed(picture, 1).any()


def test_boxes_have_names_if_there_are_too_few_colors():
    names = [f"class {i}" for i in range(80)]
    box = [100, 30, 200, 50]
    assert changed(draw(truth_of(box), {}, names=names), 0)[18:27, 115:140].any()
    assert not changed(draw(truth_of(box), {}), 0)[18:27, 115:140].any()


def record(path):
    """A record of one object, and of a region in the same place that both classes ignore."""
    xywh = dict(bbox=[10, 20, 30, 5], bbox_mode=BoxMode.XYWH_ABS, category_id=1)
    crowds = [{**xywh, "category_id": label, "iscrowd": 1} for label in (0, 1)]
    return dict(file_name=str(path), image_id=7, annotations=[xywh, *crowds])


def test_ground_truth_separates_objects_from_ignored_regions():
    truth, ignored = pictures.ground_truth(record("000007.png"), (HEIGHT, WIDTH))
    assert truth.gt_boxes.tensor.tolist() == [[10, 20, 40, 25]]
    assert truth.gt_classes.tolist() == [1]
    assert ignored.tensor.tolist() == [[10, 20, 40, 25]]
    empty = pictures.ground_truth({"annotations": []}, (HEIGHT, WIDTH))
    assert [len(x) for x in empty] == [0, 0]


def test_comparison_has_the_colors_of_the_image(tmp_path):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[..., 2] = 200
    found = {"model": predicted([100, 20, 200, 50])}
    pictures.write_png(tmp_path / "a.png", pictures.draw_comparison(image, record("a.png"), found, CLASSES))
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.shape == (2 * (HEIGHT + TITLE), WIDTH, 3)
    # blue comes first in OpenCV's order
    assert np.abs(picture[TITLE + 5, 700].astype(int) - [200, 0, 0]).max() <= 1
    assert (panel(picture, 1)[20, 150] != [200, 0, 0]).all()


def write_metrics(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def training(scale=1.0, **more):
    rows = [
        {"iteration": i, "total_loss": 9.0, "loss_class": scale / (i + 1), "loss_bbox": 1.0} for i in range(0, 60, 20)
    ]
    return [*rows, {"iteration": 59, "bbox/AP": 10.0 * scale, **more}]


def test_metrics_are_sorted_and_the_last_values_count(tmp_path):
    rows = [{"iteration": 20, "a": 1.0}, {"iteration": 40, "a": 2.0, "b": 5.0}, {"iteration": 20, "a": 3.0}]
    assert read_metrics(write_metrics(tmp_path / "metrics.json", rows)) == {
        "a": [(20, 3.0), (40, 2.0)],
        "b": [(40, 5.0)],
    }


@pytest.mark.parametrize("line", ['{"iteration": 3, "a"', '{"a": 1}', "[1]"])
def test_invalid_or_missing_metrics_are_errors(tmp_path, line):
    path = tmp_path / "metrics.json"
    with pytest.raises(UserError, match=r"metrics.json does not exist: use the metrics.json in the output folder"):
        pictures.plot_curves({"run": str(path)}, str(tmp_path / "curves.png"))
    path.write_text('{"iteration": 1, "a": 1}\n' + line + "\n")
    with pytest.raises(UserError, match=r"metrics.json, line 2, "):
        pictures.plot_curves({"run": str(path)}, str(tmp_path / "curves.png"))
    assert not (tmp_path / "curves.png").exists()


def test_curves_have_a_third_panel_for_gradient_shares(tmp_path):
    shares = {"gradient_share/det": 0.7, "gradient_share/memory_object": 0.3}
    plain = write_metrics(tmp_path / "plain.json", training())
    distilled = write_metrics(tmp_path / "distilled.json", [*training(1.2), {"iteration": 0, **shares}])
    pictures.plot_curves({"plain": plain}, str(tmp_path / "two.png"))
    pictures.plot_curves({"plain": plain, "distilled": distilled}, str(tmp_path / "three.png"), ("teacher", 30.0))
    two, three = (cv2.imread(str(tmp_path / name)).shape for name in ("two.png", "three.png"))
    assert two == (435, 930, 3)
    assert three == (435, 1560, 3)


def curves(tmp_path, monkeypatch, runs, reference=None):
    """The axes that plot_curves fills."""
    figures = []
    monkeypatch.setattr(curves_module.Figure, "savefig", lambda self, path: figures.append(self))
    paths = {name: write_metrics(tmp_path / f"{name}.json", rows) for name, rows in runs.items()}
    pictures.plot_curves(paths, "unused", reference)
    return figures[0].axes


def test_curves_show_the_numbers_of_the_runs(tmp_path, monkeypatch):
    distilled = [{**row, "loss_memory_object": 50.0} if "loss_class" in row else row for row in training(2.0)]
    ap, loss = curves(tmp_path, monkeypatch, {"plain": training(), "distilled": distilled}, ("teacher", 30.0))
    assert [line.get_ydata()[-1] for line in ap.lines] == [10.0, 20.0, 30.0]
    assert [text.get_text() for text in ap.get_legend().get_texts()] == [
        "plain, 10.0",
        "distilled, 20.0",
        "teacher, 30.0",
    ]
    # a term of the distilled run alone is not part of the detection loss
    assert loss.lines[0].get_ydata() == pytest.approx([2, 1 + 1 / 21, 1 + 1 / 41])
    assert loss.lines[1].get_ydata() == pytest.approx([3, 1 + 2 / 21, 1 + 2 / 41])
    assert list(loss.lines[0].get_xdata()) == [0, 20, 40]


def test_detection_loss_has_all_terms_of_the_detector_and_none_of_distillation(tmp_path, monkeypatch):
    """Even if every run is distilled and none logged gradient shares."""
    detection = tiny()(random_batch())
    distillation = [f"loss_{name}" for name in ("memory_object", "logits_class", "logits_giou", "class_mse", "mine_0")]
    row = {"iteration": 0, **dict.fromkeys(detection, 1.0), **dict.fromkeys(distillation, 1000.0)}
    _, loss = curves(tmp_path, monkeypatch, {"first": [row], "second": [row]})
    assert [list(line.get_ydata()) for line in loss.lines] == [[len(detection)]] * 2


def test_run_without_evaluation_has_only_a_loss_curve(tmp_path, monkeypatch):
    ap, loss = curves(tmp_path, monkeypatch, {"plain": training()[:-1]})
    assert len(ap.lines) == 0
    assert len(loss.lines) == 1


def test_pictures_of_the_documents_are_small():
    paths = list((Path(__file__).parents[2] / "docs").rglob("*.png"))
    assert paths
    assert [path.name for path in paths if path.stat().st_size > 300_000] == []


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*nowhere/a\.png: check that its folder exists"):
        pictures.write_png(tmp_path / "nowhere" / "a.png", np.zeros((2, 2, 3), np.uint8))
