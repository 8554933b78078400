"""predict.py and visualize.py, with an untrained detector: what they write, and what they refuse."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import predict
import visualize
from clockdistill.distillation.memory import location_and_scale_weights
from clockdistill.engine import run
from clockdistill.evaluation.pictures import draw_masks
from clockdistill.evaluation.pictures.sheet import TITLE_HEIGHT
from clockdistill.modeling import Target
from helpers import models

PROJECT = Path(__file__).parents[1] / "projects/CLoCKDistill"
CONFIG = str(PROJECT / "configs/dino/dino_r18_tiny_street.py")
THRESHOLD = 0.02


@pytest.fixture(scope="module")
def detector():
    return models.roughen(models.tiny("dino", num_classes=5)).eval()


@pytest.fixture
def start(detector, tmp_path, monkeypatch):
    """Run predict.py; its exit status and the folder that it writes to."""
    monkeypatch.setattr(predict, "load_model", lambda cfg: detector)
    monkeypatch.chdir(tmp_path)

    def start(*inputs):
        arguments = ["--config-file", CONFIG, "--output", "out", "--threshold", str(THRESHOLD), *inputs]
        monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
        return run(predict.main, predict.parse_args())

    return start


def random_image(seed, height=48, width=96):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_video(path, count):
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), 12.0, (96, 48))
    for seed in range(count):
        writer.write(random_image(seed))
    writer.release()


def test_video_comes_back_drawn_with_its_frames_and_json(start):
    write_video("drive.mp4", 5)
    assert start("drive.mp4") == 0
    video = cv2.VideoCapture("out/drive.mp4")
    sizes = []
    while (frame := video.read()[1]) is not None:
        sizes.append(frame.shape)
    # enlarged ten times, so that labels can be read
    assert sizes == [(480, 960, 3)] * 5
    assert sorted(path.name for path in Path("out").iterdir()) == ["drive.mp4", "predictions.json"]
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    entries = json.loads(Path("out/predictions.json").read_text())
    assert {entry["frame"] for entry in entries} == set(range(5))
    assert all(entry["file_name"] == "drive.mp4" and entry["score"] >= THRESHOLD for entry in entries)


def test_predictions_are_the_detectors_of_the_image_in_rgb(start, detector):
    Path("photos").mkdir()
    for seed in range(2):
        cv2.imwrite(f"photos/{seed}.png", random_image(seed))
    assert start("photos", "model.num_classes=5") == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["0.png", "1.png", "predictions.json"]
    entries = [e for e in json.loads(Path("out/predictions.json").read_text()) if e["file_name"] == "1.png"]
    rgb = torch.from_numpy(random_image(1)[:, :, ::-1].copy()).permute(2, 0, 1)
    with torch.no_grad():
        expected = detector([dict(image=rgb, height=48, width=96)])[0]["instances"]
    expected = expected[expected.scores >= THRESHOLD]
    assert len(expected) > 0
    names = ["Car", "Van", "Truck", "Pedestrian", "Cyclist"]
    assert [e["category_name"] for e in entries] == [names[label] for label in expected.pred_classes]
    boxes = torch.tensor([e["bbox"] for e in entries])
    torch.testing.assert_close(torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1), expected.pred_boxes.tensor)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (["nowhere.png"], "nowhere.png does not exist: name image files"),
        (["empty"], "folder empty has no images: name one"),
        (["notes.txt"], "notes.txt is no image and does not open as a video: convert it"),
        (["model.num_classes=5"], "there is nothing to look at: name image files"),
        (["a.png", "empty/../b/a.jpg"], "would be written as one file: give them to two runs"),
        (["out/a.png"], "lies in the output folder, where it could be overwritten: set another --output"),
        (["a.png", "model.num_classes=7"], "the model has 7 classes and the data set street_val"),
        (["a.png", "dataloader.test.dataset.names=none"], "none is not in Detectron2's catalog: set dataloader."),
        (["a.png", "broken.png", "cut.jpg", "torn.png"], "cannot be read: broken.png, cut.jpg, torn.png; copy"),
    ],
)
def test_wrong_inputs_are_named_in_one_sentence(start, capfd, inputs, sentence):
    for folder in ("empty", "b", "out"):
        Path(folder).mkdir()
    for path in ("a.png", "b/a.jpg", "out/a.png"):
        cv2.imwrite(path, random_image(0))
    before = Path("out/a.png").read_bytes()
    Path("notes.txt").write_text("no video")
    Path("broken.png").write_text("no image")
    for name in ("cut.jpg", "torn.png"):
        cv2.imwrite(name, random_image(0))
        Path(name).write_bytes(Path(name).read_bytes()[:-400])
    assert start(*inputs) == 1
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert sentence in error[0]
    assert [path.name for path in Path("out").iterdir()] == ["a.png"]
    assert Path("out/a.png").read_bytes() == before


def test_masks_are_drawn_as_the_memory_loss_has_them(detector):
    inputs = dict(image=torch.rand(3, 48, 80) * 255)

    class PaddingDetector:
        device, encode = detector.device, staticmethod(detector.encode)

        def preprocess(self, batch):
            return detector.preprocess([*batch, dict(image=torch.zeros(3, 96, 128))])

    model = SimpleNamespace(detector=PaddingDetector(), inputs=lambda record: record)
    target = Target(torch.tensor([0, 1]), torch.tensor([[0.3, 0.5, 0.3, 0.4], [0.8, 0.4, 0.2, 0.2]]))
    objects, background = visualize.memory_masks(model, inputs, target)
    with torch.no_grad():
        memory = detector.encode(model.detector.preprocess([inputs]))
    assert memory.padding_mask[0].any()
    for masks, weights in zip((objects, background), location_and_scale_weights(memory, [target]), strict=True):
        drawn = np.concatenate([mask.ravel() for mask in masks])
        assert drawn == pytest.approx(weights[0][~memory.padding_mask[0]].numpy())

    picture = draw_masks(np.zeros((48, 80, 3), np.uint8), objects, background, [])
    scale = 640 // 80
    height, width = objects[0].shape
    for row, column in np.ndindex(height, width):
        y, x = (TITLE_HEIGHT + scale * 48 * (row + 0.5) / height), scale * 80 * (column + 0.5) / width
        is_orange = picture[int(y), int(x), 0] > 100
        assert is_orange == (objects[0][row, column] > 0)
