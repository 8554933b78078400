"""predict.py over images, folders and videos."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import instantiate

import predict
from clockdistill.engine import load_config, run
from tiny import CONFIGS

CONFIG = str(CONFIGS / "dino" / "dino_r18w8_kitti_sample.py")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("predict") / "model.pth"
    torch.save({"model": instantiate(load_config(CONFIG).model).state_dict()}, path)
    return path


def call(checkpoint, tmp_path, *inputs, threshold="0.0"):
    options = ["--config-file", CONFIG, "--output", str(tmp_path / "out"), "--threshold", threshold, "--input"]
    return run(predict.main, predict.parse_args([*options, *map(str, inputs), f"train.init_checkpoint={checkpoint}"]))


def picture(path, height=48, width=160):
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))
    return path


def test_images_and_folders(checkpoint, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    paths = [picture(tmp_path / "a.png"), picture(tmp_path / "folder" / "b.jpg")]
    assert call(checkpoint, tmp_path, paths[0], tmp_path / "folder") == 0
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {entry["file"] for entry in entries} == set(map(str, paths))
    for entry in entries:
        x, y, width, height = entry["bbox"]
        assert 0 <= x <= x + width <= 160
        assert 0 <= y <= y + height <= 48
    assert {(e["category_id"], e["category"]) for e in entries} <= set(enumerate(predict_names()))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "predictions.json"]
    least = sorted(e["score"] for e in entries)[len(entries) // 2]
    assert call(checkpoint, tmp_path, paths[0], threshold=str(least)) == 0
    again = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert sorted(e["score"] for e in again) == sorted(
        e["score"] for e in entries if e["score"] >= least and e["file"] == str(paths[0])
    )


def predict_names():
    from clockdistill.data.kitti import KITTI_CLASSES

    return KITTI_CLASSES


def test_a_video_keeps_its_frames(checkpoint, tmp_path):
    path = tmp_path / "drive.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (320, 96))
    for value in range(3):
        writer.write(np.full((96, 320, 3), 60 * value, np.uint8))
    writer.release()
    assert call(checkpoint, tmp_path, path) == 0
    video = cv2.VideoCapture(str(tmp_path / "out" / "drive.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    assert (video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (960, 288)
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {entry["frame"] for entry in entries} == {0, 1, 2}


def absent(folder):
    return [folder / "nowhere.png"]


def empty(folder):
    (folder / "empty").mkdir()
    return [folder / "empty"]


def text(folder):
    (folder / "notes.txt").write_text("no image")
    return [folder / "notes.txt"]


def broken_video(folder):
    (folder / "drive.mp4").write_text("no video")
    return [folder / "drive.mp4"]


def twins(folder):
    return [picture(folder / "a.png"), picture(folder / "a.jpg")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (absent, "nowhere.png does not exist: give"),
        (empty, "empty has no images: give"),
        (text, "notes.txt is no image or video that OpenCV reads: convert it"),
        (broken_video, "drive.mp4 is no image or video"),
        (twins, "a.jpg would be drawn to one file"),
    ],
)
def test_what_cannot_be_read_is_said_before_anything_is_written(make, message, checkpoint, tmp_path, capsys):
    assert call(checkpoint, tmp_path, *make(tmp_path)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
