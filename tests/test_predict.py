"""predict.py: what it writes, what an interrupted run leaves, and which inputs it refuses."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T

import predict
from clockdistill.engine import Checkpointer, load_config, run
from clockdistill.modeling import DINO
from clockdistill.modeling.detector import Detector
from helpers.models import CONFIGS, add_noise, tiny, tiny_config
from helpers.toy import run_toy

THRESHOLD = 0.02
CLASS_NAMES = ["cup", "fork", "knife", "plate", "spoon"]


@pytest.fixture(scope="module")
def detector():
    return add_noise(tiny("dino", num_classes=5)).eval()


@pytest.fixture
def start(detector, tmp_path, monkeypatch):
    """Run predict.py in an empty folder and return its exit status; its dataset is not registered."""
    monkeypatch.chdir(tmp_path)
    cfg = LazyConfig.load(str(CONFIGS / "dino/dino_r18_tiny_street.py"))
    cfg.model = tiny_config("dino", num_classes=5)
    cfg.dataloader.train.dataset.names = cfg.dataloader.test.dataset.names = "unregistered"
    cfg.train.init_checkpoint = "model.pth"
    cfg.train.device = "cpu"
    LazyConfig.save(cfg, "config.yaml")
    Checkpointer(detector, ".", metadata=dict(class_names=CLASS_NAMES, resize=None)).save("model")

    def start(*inputs, opts=()):
        arguments = ["--config-file", "config.yaml", "--input", *inputs, "--output", "out"]
        arguments += ["--threshold", str(THRESHOLD), *(["--opts", *opts] if opts else [])]
        return run(predict.main, predict.parse_args(arguments))

    return start


def random_image(seed, height=48, width=96):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_video(path, count):
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), 12.0, (96, 48))
    for seed in range(count):
        writer.write(random_image(seed))
    writer.release()


def frame_sizes(path):
    return [frame.shape for frame in predict.read_frames(cv2.VideoCapture(path))]


def read_lines():
    return [json.loads(line) for line in Path("out/predictions.jsonl").read_text().splitlines()]


def error_sentence(capfd):
    (sentence,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    return sentence


def expected_instances(detector, image, size=None):
    """Direct predictions for a BGR image, perhaps resized to (height, width)."""
    rgb = image[:, :, ::-1]
    if size is not None:
        rgb = T.ResizeTransform(*image.shape[:2], *size).apply_image(rgb)
    inputs = dict(image=torch.from_numpy(rgb.copy()).permute(2, 0, 1), height=image.shape[0], width=image.shape[1])
    with torch.no_grad():
        instances = detector([inputs])[0]["instances"]
    return instances[instances.scores >= THRESHOLD]


def assert_same(saved, expected, class_names):
    assert len(expected) > 0
    assert [x["category_id"] for x in saved] == expected.pred_classes.tolist()
    assert [x["category_name"] for x in saved] == [class_names[label] for label in expected.pred_classes]
    torch.testing.assert_close(torch.tensor([x["score"] for x in saved]), expected.scores)
    boxes = torch.tensor([x["bbox"] for x in saved])
    torch.testing.assert_close(torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1), expected.pred_boxes.tensor)


def test_images(start, detector):
    Path("photos").mkdir()
    for seed in range(2):
        cv2.imwrite(f"photos/{seed}.png", random_image(seed))
    assert start("photos", "photos/1.png") == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["0.png", "1.png", "predictions.jsonl"]
    lines = read_lines()
    assert [line["file_name"] for line in lines] == ["0.png", "1.png"]
    for seed, line in enumerate(lines):
        assert_same(line["instances"], expected_instances(detector, random_image(seed)), CLASS_NAMES)


@pytest.mark.parametrize("enabled", [True, False])
def test_precision_is_that_of_the_config(start, monkeypatch, enabled):
    dtypes = []
    decode = DINO.decode

    def record(self, memory, queries):
        predictions = decode(self, memory, queries)
        dtypes.append(predictions.logits.dtype)
        return predictions

    monkeypatch.setattr(DINO, "decode", record)
    cv2.imwrite("a.png", random_image(0))
    assert start("a.png", opts=[f"train.amp.enabled={enabled}"]) == 0
    assert dtypes == [torch.bfloat16 if enabled else torch.float32]


def test_video(start):
    write_video("drive.mp4", 5)
    assert start("drive.mp4") == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["drive.mp4", "predictions.jsonl"]
    # enlarged ten times, so that labels are legible
    assert frame_sizes("out/drive.mp4") == [(480, 960, 3)] * 5
    assert cv2.VideoCapture("out/drive.mp4").get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    lines = read_lines()
    assert [(line["file_name"], line["frame"]) for line in lines] == [("drive.mp4", i) for i in range(5)]
    assert all(x["score"] >= THRESHOLD for line in lines for x in line["instances"])


def test_interrupted_video_keeps_what_is_done(start, monkeypatch):
    write_video("drive.mp4", 5)
    forward, written = Detector.forward, []

    def interrupted_forward(self, inputs):
        path = Path("out/predictions.jsonl")
        written.append(len(path.read_text().splitlines()))
        if len(written) == 4:
            raise KeyboardInterrupt
        return forward(self, inputs)

    monkeypatch.setattr(Detector, "forward", interrupted_forward)
    assert start("drive.mp4") == 130
    assert written == [0, 1, 2, 3]  # every line is on disk before the next frame, should the process be killed
    assert [line["frame"] for line in read_lines()] == [0, 1, 2]
    assert frame_sizes("out/drive.mp4") == [(480, 960, 3)] * 3


def test_video_is_finished_when_an_exception_is_kept(tmp_path):
    """A traceback keeps the writer alive, so that it must be released explicitly."""

    def pictures():
        yield from (random_image(seed) for seed in range(3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupt:
        predict.write_video(tmp_path / "drive.mp4", pictures(), 12.0)
    assert frame_sizes(str(tmp_path / "drive.mp4")) == [(48, 96, 3)] * 3
    assert interrupt.traceback


def test_images_are_decoded_once_and_unreadable_ones_reported_at_the_end(start, capfd, monkeypatch):
    for name in ("a.png", "cut.jpg", "torn.png", "z.png"):
        cv2.imwrite(name, random_image(0))
    for name in ("cut.jpg", "torn.png"):
        Path(name).write_bytes(Path(name).read_bytes()[:-400])
    Path("text.png").write_text("no image")
    read_image, decoded = predict.read_image, []
    monkeypatch.setattr(predict, "read_image", lambda path, mode: decoded.append(path.name) or read_image(path, mode))
    assert start("a.png", "cut.jpg", "torn.png", "text.png", "z.png") == 1
    assert decoded == ["a.png", "cut.jpg", "torn.png", "text.png", "z.png"]
    assert "3 of 5 images cannot be read (cut.jpg, torn.png, text.png): copy them again" in error_sentence(capfd)
    assert [line["file_name"] for line in read_lines()] == ["a.png", "z.png"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "predictions.jsonl", "z.png"]


@pytest.mark.parametrize(
    ("inputs", "opts", "sentence"),
    [
        (["nowhere.png"], [], "nowhere.png does not exist: give image files"),
        (["empty"], [], "folder empty has no images (.bmp, "),
        (["notes.txt"], [], "notes.txt is not an image and does not open as a video: convert it"),
        (["a.png", "b/a.jpg"], [], "a.png and b/a.jpg would be written to the same file"),
        (["out/a.png"], [], "out/a.png is in the output folder and could be overwritten"),
        (["a.png"], ["train.init_checkpoint=nowhere.pth"], "checkpoint nowhere.pth does not exist"),
        (["a.png"], ["train.init_checkpoint=bare.pth"], "no class names, and dataset unregistered is not in"),
        (
            ["a.png"],
            ["train.init_checkpoint=bare.pth", "dataloader.test.dataset.names=kitti_val"],
            "the model has 5 classes, but the dataset kitti_val names 8",
        ),
        (["a.png"], ["train.init_checkpoint=two.pth"], "the model has 5 classes, but the checkpoint names 2"),
    ],
)
def test_invalid_inputs_are_refused_before_anything_is_written(start, detector, capfd, inputs, opts, sentence):
    for folder in ("empty", "b", "out"):
        Path(folder).mkdir()
    for path in ("a.png", "b/a.jpg", "out/a.png"):
        cv2.imwrite(path, random_image(0))
    before = Path("out/a.png").read_bytes()
    Path("notes.txt").write_text("no video")
    torch.save(detector.state_dict(), "bare.pth")
    torch.save({"model": detector.state_dict(), "metadata": {"class_names": ["cup", "fork"]}}, "two.pth")
    assert start(*inputs, opts=opts) == 1
    assert sentence in error_sentence(capfd)
    assert [path.name for path in Path("out").iterdir()] == ["a.png"]
    assert Path("out/a.png").read_bytes() == before


def test_checkpoint_without_metadata_falls_back_to_the_config(start, detector):
    torch.save({"model": detector.state_dict()}, "bare.pth")
    cv2.imwrite("a.png", random_image(0))
    resize = "{_target_: detectron2.data.transforms.ResizeShortestEdge, short_edge_length: 64}"
    opts = ["train.init_checkpoint=bare.pth", "dataloader.test.dataset.names=street_val"]
    assert start("a.png", opts=[*opts, f"dataloader.test.mapper.augmentations=[{resize}]"]) == 0
    expected = expected_instances(detector, random_image(0), size=(64, 128))
    assert_same(read_lines()[0]["instances"], expected, ["Car", "Van", "Truck", "Pedestrian", "Cyclist"])


def test_training_saves_what_prediction_needs(start):
    Path("data").mkdir()
    cv2.imwrite("data/a.png", random_image(0))
    box = dict(id=1, image_id=1, category_id=3, bbox=[8, 8, 40, 24], area=960, iscrowd=0)
    coco = dict(
        images=[dict(id=1, file_name="a.png", height=48, width=96)],
        annotations=[box],
        categories=[dict(id=1 + i, name=name) for i, name in enumerate(CLASS_NAMES)],
    )
    Path("data/train.json").write_text(json.dumps(coco))
    resize = "{_target_: detectron2.data.transforms.ResizeShortestEdge, short_edge_length: 64, max_size: 100}"
    name = "coco:data/train.json"
    training = [f"dataloader.train.dataset.names={name}", f"dataloader.test.mapper.augmentations=[{resize}]"]
    training += ["train.init_checkpoint=''", "train.output_dir=run", "train.max_iter=1", "train.eval_period=0"]
    training += ["dataloader.evaluator=null", "dataloader.train.num_workers=0", "dataloader.train.total_batch_size=1"]
    Path("run").mkdir()
    run_toy(load_config("config.yaml", training))
    shutil.rmtree("data")
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)

    cv2.imwrite("b.png", random_image(1))
    assert start("b.png", opts=["train.init_checkpoint=run/model_final.pth"]) == 0
    trained = tiny("dino", num_classes=5).eval()
    trained.load_state_dict(torch.load("run/model_final.pth", weights_only=True)["model"])
    expected = expected_instances(trained, random_image(1), size=(50, 100))
    assert_same(read_lines()[0]["instances"], expected, CLASS_NAMES)
