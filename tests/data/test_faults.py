"""Faulty labels, images, splits and configs: the errors of the data check and of training."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

import train_net
from clockdistill.data import check, register_by_name
from clockdistill.data.catalog import ReadingPolicy, reading
from clockdistill.engine import run
from clockdistill.errors import UserError
from clockdistill.evaluation.results import as_file_name
from helpers.models import CONFIGS

pytestmark = pytest.mark.usefixtures("loggers")

SIZE = (64, 48)
BOX = "10.00 12.00 30.00 40.00"
CAR = f"Car 0.00 0 1.85 {BOX} 1.67 1.87 3.69 -16.53 2.39 58.49 1.57"
STREET, DISTILLED = "dino/dino_r18_tiny_street.py", "dino/dino_r18_small_to_tiny_street.py"
CLASSES = "Car+Van+Truck+Pedestrian+Cyclist"


@pytest.fixture
def root(tmp_path):
    """A valid dataset, in both KITTI's and COCO's format."""
    images, labels = tmp_path / "training/image_2", tmp_path / "training/label_2"
    for folder in (images, labels, tmp_path / "ImageSets"):
        folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
    for number in range(2):
        Image.fromarray(pixels).save(images / f"{number:06d}.png")
        (labels / f"{number:06d}.txt").write_text(f"{CAR}\n")
    (tmp_path / "ImageSets/train.txt").write_text("000000\n000001\n")
    coco = dict(
        images=[dict(id=i, file_name=f"{i:06d}.png", width=SIZE[0], height=SIZE[1]) for i in range(2)],
        annotations=[dict(id=i, image_id=i, category_id=7, bbox=[10, 12, 20, 28], area=560, iscrowd=0) for i in (0, 1)],
        categories=[dict(id=7, name="Car")],
    )
    (tmp_path / "train.json").write_text(json.dumps(coco))
    return tmp_path


def label(old, new):
    """Replace text in the second line of a label file."""
    return lambda root: (root / "training/label_2/000001.txt").write_text(
        f"{CAR}\n{CAR.replace('Car', 'Van').replace(old, new)}\n"
    )


def write(path, content):
    return lambda root: (root / path).write_bytes(content)


def delete(*paths):
    return lambda root: [path.unlink() for pattern in paths for path in list(root.glob(pattern))]


def truncate_image(root):
    path = root / "training/image_2/000001.png"
    path.write_bytes(path.read_bytes()[:-30])


def damage_image(root):
    path = root / "training/image_2/000001.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(content)


def annotation(**changes):
    """Change the second annotation of the COCO file; None removes the key."""

    def change(content):
        content["annotations"][1] |= changes
        content["annotations"][1] = {k: v for k, v in content["annotations"][1].items() if v is not None}

    return coco(change)


def coco(change):
    def change_file(root):
        content = json.loads((root / "train.json").read_text())
        change(content)
        (root / "train.json").write_text(json.dumps(content))

    return change_file


KITTI_FAULTS = {
    "too few fields": (label(" 1.57", ""), r"label_2/000001\.txt:2: expected 15 fields, got 14"),
    "too many fields": (label("1.57", "1.57 0.9 3"), r"label_2/000001\.txt:2: expected 15 fields, got 17"),
    "not a number": (label("12.00", "l2.00"), r"000001\.txt:2: could not convert string to float: 'l2\.00'"),
    "not finite": (label("12.00", "nan"), r"000001\.txt:2: a field is NaN or infinite"),
    "infinite occlusion": (label(" 0 1.85", " inf 1.85"), r"000001\.txt:2: a field is NaN or infinite"),
    "inverted box": (label(BOX, "30 12 10 40"), r"000001\.txt:2: inverted or empty box \(30, 12, 10, 40\)"),
    "empty box": (label(BOX, "10 12 30 12"), r"000001\.txt:2: inverted or empty box"),
    "box outside": (label(BOX, "10 12 80 40"), r"000001\.txt:2: box \(10, 12, 80, 40\) exceeds the 64x48 image"),
    "negative box": (label(BOX, "-5 12 8 40"), r"000001\.txt:2: box \(-5, 12, 8, 40\) exceeds"),
    "unknown type": (label("Van", "Lorry"), r"000001\.txt:2: unknown type Lorry; use one of Car, Van"),
    "duplicate object": (label("Van", "Car"), r"000001\.txt:2: same object as on line 1"),
    "binary label": (write("training/label_2/000001.txt", b"\xff\xd8\x00"), r"000001\.txt:1: expected 15 .*, got 1;"),
    "image without label": (delete("training/label_2/000001.txt"), r"000001\.png: label file .*000001\.txt does not"),
    "missing image": (delete("training/image_2/000001.png"), r"train\.txt:2: frame 000001 has no image"),
    "truncated image": (truncate_image, r"cannot read image .*000001\.png: "),
    "damaged image": (damage_image, r"cannot read image .*000001\.png: "),
    "text as image": (write("training/image_2/000001.png", b"text"), r"cannot read image .*000001\.png: "),
    "empty image": (write("training/image_2/000001.png", b""), r"cannot read image .*000001\.png: "),
    "duplicate frame": (
        write("ImageSets/train.txt", b"000000\n000001\n\n000000"),
        r"train\.txt:4: duplicate frame 000000",
    ),
    "empty split": (write("ImageSets/train.txt", b"\n"), "the train split of .* has no frames"),
    "no images at all": (delete("training/image_2/*"), "no KITTI dataset at .*image_2 has no images"),
    "no labels at all": (delete("training/label_2/*"), "label_2 has no labels"),
}
COCO_FAULTS = {
    "missing file": (delete("train.json"), r"train\.json does not exist"),
    "invalid JSON": (write("train.json", b"{"), r"train\.json cannot be read as JSON"),
    "no categories": (coco(lambda content: content.pop("categories")), r"train\.json: no list `categories`"),
    "no annotations": (coco(lambda content: content.pop("annotations")), r"train\.json: no list `annotations`"),
    "nameless category": (coco(lambda content: content["categories"][0].pop("name")), "a category has no name"),
    "duplicate category": (
        coco(lambda content: content["categories"].append(dict(id=7, name="Van"))),
        "missing or duplicate category ids",
    ),
    "unknown category": (annotation(category_id=3), "annotation 1: unknown category 3; use one of 7"),
    "unknown image": (annotation(image_id=9), "annotation 1: unknown image 9"),
    "no box": (annotation(bbox=None), "annotation 1: no bbox"),
    "text as box": (annotation(bbox="1 2 3 4"), "annotation 1: invalid bbox '1 2 3 4'; expected list"),
    "list as image id": (annotation(image_id=[1]), r"annotation 1: invalid image_id \[1\]; expected int or str"),
    "text as width": (coco(lambda content: content["images"][1].update(width="64")), "image 1: invalid width '64'"),
    "iscrowd": (annotation(iscrowd="no"), "annotation 1: iscrowd 'no'; write 0 or 1"),
    "three numbers": (annotation(bbox=[1, 2, 3]), r"annotation 1: invalid box \[1, 2, 3\]; write four numbers"),
    "text in a box": (annotation(bbox=[1, 2, 3, "4"]), "annotation 1: invalid box .*; write four numbers"),
    "negative width": (annotation(bbox=[30, 12, -20, 28]), "annotation 1: inverted or empty box"),
    "box outside": (annotation(bbox=[50, 12, 20, 28]), r"annotation 1: box \(50, 12, 70, 40\) exceeds the 64x48 image"),
    "duplicate annotation id": (annotation(id=0), "annotation 0: duplicate id"),
    "duplicate object": (annotation(image_id=0), "annotation 1: duplicate of another annotation of image 0"),
    "duplicate image id": (coco(lambda content: content["images"][1].update(id=0)), "image 0: duplicate id"),
    "no width": (coco(lambda content: content["images"][1].pop("width")), "image 1: no width"),
    "missing image": (delete("training/image_2/000001.png"), r"image .*000001\.png does not exist"),
    "image of another size": (
        coco(lambda content: content["images"][1].update(width=99)),
        r"000001\.png is 64x48, not 99x48",
    ),
}
NEEDS_DECODING = ("damaged image",)
REPAIRED = (
    "kitti: empty box",
    "kitti: box outside",
    "kitti: negative box",
    "kitti: duplicate object",
    "coco: box outside",
    "coco: duplicate object",
    "coco: image of another size",
)


def name_of(root, kind):
    return f"kitti:{root}:train:{CLASSES}" if kind == "kitti" else f"coco:{root}/train.json:{root}/training/image_2"


def run_train_net(config, *arguments):
    """Return the exit status."""
    arguments = ["--config-file", str(config), "--num-gpus", "0", *arguments]
    return run(train_net.main, train_net.parse_args(arguments))


def run_check(monkeypatch, capsys, *names):
    """Return the exit status and everything printed."""
    monkeypatch.setattr(check, "plot", lambda *_: None)
    status = check.main(list(names))
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return status, printed.out + printed.err


def test_a_missing_folder_of_images_is_one_fault(root, monkeypatch, capsys):
    status, printed = run_check(monkeypatch, capsys, f"coco:{root}/train.json:{root}/nowhere")
    assert status == 1
    assert printed.count("does not exist") == 1
    assert f"the images' folder {root}/nowhere does not exist; name it, as in coco:FILE.json:FOLDER" in printed


@pytest.mark.parametrize("kind", ["kitti", "coco"])
def test_a_valid_data_set_passes_the_check(root, monkeypatch, capsys, kind):
    status, printed = run_check(monkeypatch, capsys, name_of(root, kind))
    assert status == 0
    assert "2 image(s), 0 fault(s)" in printed


@pytest.mark.parametrize("kind", ["kitti", "coco", "coco without areas", "coco with null"])
def test_a_valid_data_set_needs_only_overrides_to_train(root, kind):
    if kind == "coco without areas":
        annotation(area=None, iscrowd=None)(root)
    if kind == "coco with null":
        coco(lambda content: content["annotations"][1].update(area=None, iscrowd=None))(root)
    options = [f"dataloader.{loader}.dataset.names={name_of(root, kind)}" for loader in ("train", "test")]
    options += [f"train.output_dir={root}/out", "train.max_iter=1", "dataloader.train.total_batch_size=2"]
    options += ["dataloader.train.num_workers=0", f"model.num_classes={5 if kind == 'kitti' else 1}"]
    assert run_train_net(CONFIGS / STREET, *options) == 0
    results = json.loads((root / "out/results.json").read_text())
    assert "AP" in results["bbox"]
    assert (root / "out" / f"{as_file_name(name_of(root, kind))}_coco_format.json").exists() == (kind != "coco")
    assert ("Car/easy/AP40" in results.get("kitti", {})) == (kind == "kitti")


@pytest.mark.parametrize(
    ("kind", "break_it", "message"),
    [
        pytest.param(kind, *case, id=f"{kind}: {title}")
        for kind, faults in (("kitti", KITTI_FAULTS), ("coco", COCO_FAULTS))
        for title, case in faults.items()
    ],
)
def test_the_check_and_training_report_faults(root, monkeypatch, capsys, request, kind, break_it, message):
    break_it(root)
    name = name_of(root, kind)
    status, printed = run_check(monkeypatch, capsys, name)
    is_repaired = request.node.callspec.id in REPAIRED
    assert status == (0 if is_repaired else 1)
    line = next(line for line in printed.splitlines() if str(root) in line and not line.startswith(name))
    assert line.startswith("repaired: ") == is_repaired
    assert re.search(message, line), line
    assert re.search(r"; \w", line), "the message does not say how to fix it"
    if any(request.node.callspec.id.endswith(title) for title in NEEDS_DECODING):
        return
    if is_repaired:
        assert len(DatasetCatalog.get(name)) == 2
    with reading(ReadingPolicy(strict=True)), pytest.raises(UserError, match=message):
        DatasetCatalog.get(name)


def test_all_faults_are_reported_at_once(root, monkeypatch, capsys, caplog):
    lines = [CAR, CAR.replace("Car", "Lorry"), CAR.replace("12.00", "x"), CAR, CAR.replace(BOX, "30 12 10 40")]
    (root / "training/label_2/000000.txt").write_text("\n".join(lines))
    (root / "training/label_2/000001.txt").unlink()
    (root / "ImageSets/train.txt").write_text("000000\n000001\n000000\n000007\n")
    places = [f"label_2/000000.txt:{number}: " for number in (2, 3, 4, 5)]
    places += ["000001.png: label file", "train.txt:3: ", "train.txt:4: "]
    name = name_of(root, "kitti")
    _, printed = run_check(monkeypatch, capsys, name)
    assert "1 image(s), 6 fault(s)" in printed
    with pytest.raises(UserError, match="the first of 6 faults"):
        DatasetCatalog.get(name)
    caplog.clear()
    with reading(ReadingPolicy(strict=True)), pytest.raises(UserError, match="the first of 7 faults"):
        DatasetCatalog.get(name)
    for place in places:
        assert sum(place in line for line in printed.splitlines()) == 1
        assert place in caplog.text


def test_a_changed_label_file_is_parsed_again(root):
    """Even if its size and modification time are the same."""
    name = name_of(root, "kitti")
    register_by_name(name)
    path = root / "training/label_2/000001.txt"
    before = path.stat()
    assert DatasetCatalog.get(name)[1]["annotations"][0]["bbox"][0] == 10
    path.write_text(CAR.replace("10.00", "11.00") + "\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert DatasetCatalog.get(name)[1]["annotations"][0]["bbox"][0] == 11


def test_statistics_and_picture(root, capsys):
    tall = CAR.replace(BOX, "0 0 40 47").replace("Car", "Truck")
    occluded = CAR.replace("Car 0.00 0", "Car 0.40 2")
    region = f"DontCare -1 -1 -10 {BOX} -1 -1 -1 -1000 -1000 -1000 -10"
    (root / "training/label_2/000000.txt").write_text("\n".join([CAR, tall, occluded, region]))
    picture = root / "out" / "statistics.png"
    names = [name_of(root, kind) for kind in ("kitti", "coco")]
    assert check.main([*names, "--output", str(picture)]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    # boxes, small, medium, large, easy, moderate, hard; a height of 28 pixels is too small for easy, one of 47 is not
    assert ["Car", "3", "3", "0", "0", "0", "2", "3"] in rows
    assert ["Truck", "1", "0", "1", "0", "1", "1", "1"] in rows
    assert ["all", "4", "3", "1", "0", "1", "3", "4"] in rows
    assert [row[:2] for row in rows if row and row[0] == "ignored"] == [["ignored", "1"], ["ignored", "0"]]
    assert ["Car", "2", "2", "0", "0"] in rows
    with Image.open(picture) as image:
        assert np.asarray(image.convert("L")).std() > 10


def test_the_picture_is_written_to_output(root, monkeypatch):
    monkeypatch.chdir(root)
    assert check.main(["kitti:.:train"]) == 0
    assert [path.name for path in (root / "output").iterdir()] == ["data_check.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("streets", "unknown dataset streets"),
        ("coco:", "invalid dataset name coco:; write coco:ANNOTATIONS.json"),
        ("coco:a.json:b:c", "invalid dataset name coco:a.json:b:c"),
        ("kitti:/data/mine", "invalid dataset name kitti:/data/mine; write kitti:FOLDER:SPLIT"),
        ("kitti:/data/mine:train:Car+:Van", r"invalid classes Car\+:Van"),
        ("kitti:/data/mine:train", "no KITTI dataset at /data/mine: .*name the folder"),
    ],
)
def test_an_invalid_name(monkeypatch, capsys, name, message):
    status, printed = run_check(monkeypatch, capsys, name)
    assert status == 1
    assert re.match(f"error: .*{message}", printed), printed


CONFIG_FAULTS = {
    "no config": ("nowhere.py", [], r"config file .*nowhere\.py does not exist"),
    "config that does not execute": ("model = x", [], r"config\.py, line 1, does not execute: NameError"),
    "syntax": ("model = (", [], r"config\.py.*line 1"),
    "config without data": ("model = dict(a=1)", [], "has no `dataloader`"),
    "unknown key": (
        STREET,
        ["train.max_iters=3"],
        "unknown config key train.max_iters: did you mean ",
    ),
    "wrong type": (STREET, ["train.max_iter=many"], r"train\.max_iter cannot be 'many': it must be an integer"),
    "no override": (STREET, ["train.max_iter"], "as key=value"),
    "other number of classes": (
        STREET,
        ["model.num_classes=3"],
        "has 5 classes and the model 3: set model.num_c",
    ),
    "unknown dataset": (
        STREET,
        ["dataloader.train.dataset.names=streets"],
        "streets is not in Detectron2's catalog: register it, or set dataloader.train.dataset.names",
    ),
    "dataset without a path": (STREET, ["dataloader.train.dataset.names=coco:"], "invalid dataset name coco:;"),
    "data that is not there": (STREET, ["dataloader.test.dataset.names=kitti:/no:val"], "no KITTI dataset at /no"),
    "mixed precision of no type": (
        STREET,
        ["train.amp.enabled=True", "train.amp.dtype=half"],
        "train.amp.dtype cannot be 'half': it must be one of bfloat16, float16",
    ),
    "no initial weights": (STREET, ["train.init_checkpoint=nowhere.pth"], r"nowhere\.pth"),
    "evaluation without weights": (STREET, ["--eval-only", "train.init_checkpoint=''"], "no trained weights are given"),
    "no teacher": (DISTILLED, ["distillation.teacher.checkpoint=nowhere.pth"], r"nowhere\.pth"),
    "no teacher's config": (DISTILLED, ["distillation.teacher.config=nowhere.py"], r"nowhere\.py does not exist"),
    "unknown feature": (DISTILLED, ["distillation.losses.memory.feature=pixels"], "choose memory or backbone"),
}


@pytest.mark.parametrize(("config", "overrides", "message"), CONFIG_FAULTS.values(), ids=CONFIG_FAULTS.keys())
def test_a_faulty_config_ends_training(root, capsys, config, overrides, message):
    path = CONFIGS / config
    if "=" in config:
        path = root / "config.py"
        path.write_text(config)
    names = [f"dataloader.{loader}.dataset.names={name_of(root, 'kitti')}" for loader in ("train", "test")]
    given = [text for text in overrides if text.startswith("--")]
    options = [*names, f"train.output_dir={root}/out", *(text for text in overrides if text not in given)]
    assert run_train_net(path, *given, *options) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"error: .*{message}", last), last
    assert not list(Path(root).glob("out/*.pth"))
