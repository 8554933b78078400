"""export.py, and exported models in predict.py and `--eval-only --compare`."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from PIL import ExifTags, Image

import export
import make_street_scenes
import predict
import train_net
from clockdistill.engine import run
from clockdistill.engine.checkpoint import resize_rule
from clockdistill.errors import UserError
from clockdistill.export import ExportedDetector, write
from helpers.models import CONFIGS

onnx = pytest.importorskip("onnx", reason="pip install -e .[export]")
pytest.importorskip("onnxruntime", reason="pip install -e .[export]")
CONFIG = CONFIGS / "dino" / "dino_r18_small_street.py"
CHECKPOINT = CONFIGS.parent / "demo" / "dino_r18_small_street.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Street scenes of 48x160 pixels and a model exported on them."""
    folder = tmp_path_factory.mktemp("exported")
    make_street_scenes.make(folder / "street_scenes", train=1, val=3, seed=0, size=(160, 48), jobs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        patch.chdir(folder)
        assert export_model("student.onnx") == 0
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    monkeypatch.chdir(folder)


def export_model(output, *arguments, checkpoint=CHECKPOINT):
    command = ["--config-file", str(CONFIG), "--output", output, *arguments]
    return run(export.main, export.parse_args([*command, "--opts", f"train.init_checkpoint={checkpoint}"]))


def error_sentence(capfd):
    (sentence,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    return sentence


def test_metadata(folder):
    model = ExportedDetector("student.onnx")
    assert model.metadata["class_names"] == ["Car", "Van", "Truck", "Pedestrian", "Cyclist"]
    assert model.metadata["resize"] is None
    assert model.size == [48, 160]
    assert model.metadata["normalization"]["inside_the_model"]
    assert model.metadata["config"] == "dino_r18_small_street"
    assert model.metadata["weights_sha256"] == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    assert {"clockdistill", "torch", "onnx"} <= model.metadata["versions"].keys()


def test_predictions_equal_those_of_the_checkpoint(folder):
    images = str(folder / "street_scenes" / "training" / "image_2")
    lines = []
    for model in (["--model", "student.onnx"], ["--config-file", str(CONFIG)]):
        arguments = [*model, "--input", images, "--output", "out", "--threshold", "0.1"]
        if "--config-file" in model:
            arguments += ["--opts", f"train.init_checkpoint={CHECKPOINT}"]
        assert run(predict.main, predict.parse_args(arguments)) == 0
        lines.append([json.loads(line) for line in Path("out/predictions.jsonl").read_text().splitlines()])
    found = 0
    for exported, plain in zip(*lines, strict=True):
        assert exported["file_name"] == plain["file_name"]
        for a, b in zip(exported["instances"], plain["instances"], strict=True):
            assert a["category_name"] == b["category_name"]
            assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-2)
            assert a["score"] == pytest.approx(b["score"], abs=1e-4)
            found += 1
    assert found > 3


@pytest.fixture
def no_cached_annotations():
    """Detectron2's evaluator keeps the path of a dataset's annotations for the rest of the process."""
    cached = vars(MetadataCatalog.get("street_val"))
    cached.pop("json_file", None)
    yield
    cached.pop("json_file", None)


@pytest.mark.usefixtures("no_cached_annotations", "loggers")
def test_comparison_with_the_checkpoint():
    models = [f"plain={CONFIG}:{CHECKPOINT}", "exported=student.onnx"]
    arguments = ["--config-file", str(CONFIG), "--eval-only", "--num-gpus", "0", "--compare", models[0]]
    overrides = ["train.output_dir=out", "train.benchmark.images=1", "train.benchmark.rounds=1"]
    args = train_net.parse_args([*arguments, "--compare", models[1], *overrides])
    assert run(train_net.main, args) == 0
    plain, exported = json.loads(Path("out/comparison.json").read_text()).values()
    assert exported["bbox"]["AP"] == pytest.approx(plain["bbox"]["AP"], abs=0.1)
    assert exported["benchmark"]["file_mib"] == Path("student.onnx").stat().st_size / 2**20
    assert plain["benchmark"]["file_mib"] == CHECKPOINT.stat().st_size / 2**20
    assert exported["benchmark"]["ms_per_image"] > 0
    assert exported["benchmark"]["gflops"] is None
    assert "file (MiB)" in Path("out/log.txt").read_text()


def test_a_file_that_computes_something_else_is_not_left(monkeypatch, capfd, tmp_path):
    contents = torch.load(CHECKPOINT, weights_only=True)
    contents["model"]["content.weight"] += 1e-2
    torch.save(contents, tmp_path / "other.pth")
    monkeypatch.setattr(export, "write_model", lambda detector, file, *_: shutil.copy("student.onnx", file))
    before = sorted(Path().iterdir())
    assert export_model("wrong.onnx", checkpoint=tmp_path / "other.pth") == 1
    assert "does not compute what PyTorch computes" in error_sentence(capfd)
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["student.pth"], "--output student.pth has no known format: end its name in .onnx, .xml, .pt2"),
        (["nowhere/student.onnx"], "the folder of --output nowhere/student.onnx does not exist"),
        (["student.pt2", "--precision", "int8"], "a .pt2 file has float32 weights: leave out --precision int8"),
        (["student.pt2", "--precision", "fp16"], "a .pt2 file has float32 weights: leave out --precision fp16"),
        (["student.pt2", "--dynamic"], "a .pt2 file has a fixed size"),
        (["new.onnx", "--images", "nowhere"], "nowhere does not exist"),
        (["new.onnx", "--images", "empty"], "folder empty has no images"),
        (["new.onnx", "--images", "torn"], "cannot read image torn/a.png"),
    ],
)
def test_wrong_arguments(arguments, sentence, capfd):
    for name in ("empty", "torn"):
        Path(name).mkdir(exist_ok=True)
    Path("torn/a.png").write_text("no image")
    assert export_model(*arguments) == 1
    assert sentence in error_sentence(capfd)
    assert not Path("new.onnx").exists()


@pytest.fixture
def traced(monkeypatch):
    """Do not trace the model again."""
    monkeypatch.setattr(export, "write_model", lambda detector, file, *_: shutil.copy("student.onnx", file))


@pytest.mark.usefixtures("traced")
def test_int8_on_labeled_images(folder, capfd):
    assert export_model("int8.onnx", "--precision", "int8") == 0
    assert "COCO's AP on 3 images of street_val: " in capfd.readouterr().out
    model = ExportedDetector("int8.onnx")
    assert model.metadata["precision"] == "int8"
    assert model.metadata["accuracy"]["after"] >= model.metadata["accuracy"]["before"] - 0.5
    assert "decoder/class_heads.2" in model.metadata["float_layers"]
    assert model.file_size < 0.5 * Path("student.onnx").stat().st_size
    images = str(folder / "street_scenes" / "training" / "image_2")
    arguments = ["--model", "int8.onnx", "--input", images, "--output", "out-int8"]
    assert run(predict.main, predict.parse_args(arguments)) == 0


@pytest.mark.usefixtures("traced")
def test_int8_agrees_with_float32_on_images_without_labels(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    images = str(folder / "street_scenes" / "training" / "image_2")
    assert export_model("bare.onnx", "--precision", "int8", "--images", images) == 0
    assert "4 images, with the detections of the float32 model as truth: 100.00 in float32" in capfd.readouterr().out
    metadata = ExportedDetector("bare.onnx").metadata
    assert 0 < metadata["accuracy"]["after"] <= 100
    assert "backbone/stem/conv1" not in metadata["float_layers"], "a limit of accuracy was applied"


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (50.0, 49.0, "int8 loses more than 0.5 AP even with all but one part in float32"),
        (
            float("nan"),
            0.0,
            "cannot show the accuracy of int8, because there are no objects: set dataloader.test.dataset.names",
        ),
    ],
)
@pytest.mark.usefixtures("traced")
def test_int8_that_is_not_accurate_is_not_left(before, after, sentence, monkeypatch, capfd):
    quantizer = SimpleNamespace(parts=["backbone", "neck"], quantize=lambda parts: onnx.load("student.onnx"))
    monkeypatch.setattr(export, "Quantizer", lambda *_: quantizer)
    monkeypatch.setattr(export, "Evaluation", lambda *_: lambda path, _: before if path.stem == "float" else after)
    files = sorted(Path().iterdir())
    assert export_model("poor.onnx", "--precision", "int8") == 1
    assert sentence in error_sentence(capfd)
    assert sorted(Path().iterdir()) == files


def test_int8_needs_images_to_calibrate_on(capfd):
    overrides = ["dataloader.train.dataset.names=mine"]
    command = ["--config-file", str(CONFIG), "--output", "new.onnx", "--precision", "int8", "--opts", *overrides]
    assert run(export.main, export.parse_args([*command, f"train.init_checkpoint={CHECKPOINT}"])) == 1
    sentence = error_sentence(capfd)
    assert "mine is not in Detectron2's catalog" in sentence
    assert "pass a folder of images with --images" in sentence


def test_a_missing_package_is_named(monkeypatch, capfd):
    monkeypatch.setattr(write.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    assert export_model("new.onnx") == 1
    assert "onnx is not installed: run `pip install onnx`" in error_sentence(capfd)


def test_exported_models_of_other_classes_are_not_compared(capfd):
    arguments = ["--config-file", str(CONFIG), "--eval-only", "--num-gpus", "0", "--compare", "exported=student.onnx"]
    args = train_net.parse_args([*arguments, "train.output_dir=other", "model.num_classes=3"])
    assert run(train_net.main, args) == 1
    assert "student.onnx has 5 classes and the config 3" in error_sentence(capfd)


def test_a_model_is_required(capfd):
    assert run(predict.main, predict.parse_args(["--input", "street_scenes/training/image_2", "--output", "out2"])) == 1
    assert "no model: give --model with an exported file" in error_sentence(capfd)


def test_resizing_determines_metadata_and_size(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((60, 90, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((80, 40, 3), np.uint8))
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    rule = dict(short_edge_length=40, max_size=70)
    assert resize_rule([]) is None
    assert export.smallest_size(paths, T.AugmentationList([])) == (80, 90)
    assert resize_rule([T.ResizeShortestEdge(**rule)]) == rule
    assert export.smallest_size(paths, T.AugmentationList([T.ResizeShortestEdge(**rule)])) == (70, 60)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (100, 30)).save(tmp_path / "c.jpg", exif=turned)
    assert export.smallest_size([tmp_path / "c.jpg"], T.AugmentationList([])) == (100, 30)
    bicubic = T.ResizeShortestEdge(40, interp=Image.BICUBIC)
    for augmentations in (
        [T.RandomFlip()],
        [bicubic],
        [T.ResizeShortestEdge((40, 50))],
        [T.ResizeShortestEdge(40)] * 2,
    ):
        with pytest.raises(UserError, match="only store one bilinear ResizeShortestEdge of a fixed size"):
            resize_rule(augmentations)
