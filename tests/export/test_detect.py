"""deploy/detect.py: what it writes without this project, torch and Detectron2, and what it refuses."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

import detect as detect_script
from clockdistill.export import ExportedDetector, write_model
from helpers.documents import ROOT
from helpers.models import add_noise, tiny
from predict import predict

pytest.importorskip("onnx", reason="pip install -e .[export]")
pytest.importorskip("onnxruntime", reason="pip install -e .[export]")
DETECT = ROOT / "deploy" / "detect.py"
METADATA = dict(class_names=["cup", "fork", "knife"], resize=dict(short_edge_length=60, max_size=96), size=[64, 96])
# lets Python find only what the script may import
ISOLATED = """
import importlib.abc, runpy, sys
class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "detectron2", "clockdistill", "PIL", "scipy", "onnx"):
            raise ImportError(f"{name} must not be imported")
sys.meta_path.insert(0, Forbid())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, an image, a video, and files that are neither."""
    folder = tmp_path_factory.mktemp("deploy")
    model = add_noise(tiny()).eval()
    write_model(model, folder / "model.onnx", (64, 96), METADATA)
    write_model(model, folder / "bare.onnx", (64, 96), {})
    (folder / "photos").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (120, 180, 3), np.uint8)
    cv2.imwrite(str(folder / "photos" / "a.png"), image)
    writer = cv2.VideoWriter(str(folder / "drive.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 12.0, (180, 120))
    for _ in range(3):
        writer.write(image)
    writer.release()
    for name in ("foreign.onnx", "notes.mp4", "torn.png"):
        (folder / name).write_text("neither a model nor a picture")
    torch.save(model.state_dict(), folder / "model.pth")
    return folder


def detect(folder, model, *inputs):
    command = [sys.executable, "-c", ISOLATED, str(DETECT), "--model", model, "--input", *inputs]
    return subprocess.run([*command, "--output", "out", "--threshold", "0"], cwd=folder, capture_output=True, text=True)


def test_images_and_videos(folder):
    result = detect(folder, "model.onnx", "photos", "drive.mp4")
    assert result.returncode == 0, result.stderr
    assert "4 images, " in result.stdout
    assert "per second" in result.stdout
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "drive.mp4", "predictions.jsonl"]
    lines = [json.loads(line) for line in (folder / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [(line["file_name"], line.get("frame")) for line in lines] == [
        ("a.png", None),
        *(("drive.mp4", frame) for frame in range(3)),
    ]
    # as Detectron2 and Pillow resize it
    image = cv2.imread(str(folder / "photos" / "a.png"))[:, :, ::-1]
    augmentations = T.AugmentationList([T.ResizeShortestEdge(**METADATA["resize"])])
    expected = predict(ExportedDetector(folder / "model.onnx"), augmentations, image, 0)
    instances = lines[0]["instances"]
    assert [x["category_id"] for x in instances] == expected.pred_classes.tolist()
    assert {x["category_name"] for x in instances} <= set(METADATA["class_names"])
    boxes = torch.tensor([x["bbox"] for x in instances])
    boxes[:, 2:] += boxes[:, :2]
    torch.testing.assert_close(boxes, expected.pred_boxes.tensor, rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.tensor([x["score"] for x in instances]), expected.scores)


@pytest.mark.parametrize(
    ("model", "source", "sentence"),
    [
        ("nowhere.onnx", "photos", "nowhere.onnx is not an exported model"),
        ("model.pth", "photos", "model.pth is not an exported model"),
        ("foreign.onnx", "photos", "foreign.onnx cannot be opened"),
        ("bare.onnx", "photos", "bare.onnx has no metadata"),
        ("model.onnx", "notes.mp4", "notes.mp4 does not exist, or is no image, video or camera index"),
        ("model.onnx", "torn.png", "torn.png does not exist, or is no image, video or camera index"),
        ("model.onnx", "nowhere", "nowhere does not exist, or is no image, video or camera index"),
    ],
)
def test_wrong_files_are_named_in_one_sentence(folder, model, source, sentence):
    result = detect(folder, model, source)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert sentence in line
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("inputs", "output", "sentence"),
    [
        (["photos"], "photos", "the result of photos/a.png would replace photos/a.png or its result: change --output"),
        (["drive.mp4"], ".", "the result of drive.mp4 would replace drive.mp4 or its result: change --output"),
        (
            ["links/b.png"],
            "photos",
            "the result of links/b.png would replace links/b.png or its result: change --output",
        ),
        (
            ["links/b.png"],
            "links",
            "the result of links/b.png would replace links/b.png or its result: change --output",
        ),
        (["photos", "a.jpg"], "out", "the result of photos/a.png would replace a.jpg or its result: change --output"),
    ],
)
def test_no_result_replaces_an_input_or_another_result(folder, inputs, output, sentence):
    (folder / "a.jpg").write_bytes((folder / "photos" / "a.png").read_bytes())
    (folder / "links").mkdir(exist_ok=True)
    (folder / "links" / "b.png").unlink(missing_ok=True)
    (folder / "links" / "b.png").symlink_to("../photos/a.png")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    command = [sys.executable, str(DETECT), "--model", "model.onnx", "--input", *inputs, "--output", output]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, f"error: {sentence}\n")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_resizing_is_that_of_detectron2():
    rng = np.random.default_rng(0)
    for height, width, rows, columns in ((37, 91, 50, 123), (480, 640, 128, 171), (96, 320, 96, 320), (60, 40, 20, 13)):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        expected = T.ResizeTransform(height, width, rows, columns).apply_image(image)
        assert np.array_equal(detect_script.resize(image, rows, columns), expected)


def test_it_is_short():
    assert len(DETECT.read_text().splitlines()) <= 150
