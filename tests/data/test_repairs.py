"""What is repaired in a dataset, and what may be left out."""

import json
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import ExifTags, Image

from clockdistill.data import check, register_by_name
from clockdistill.data.catalog import ReadingPolicy, reading
from clockdistill.errors import UserError

LINE = "Car 0.00 0 1.85 {} 1.67 1.87 3.69 -16.53 2.39 58.49 1.57\n"
WIDTH, HEIGHT = 64, 48
BOXES = {
    "inside": (10, 12, 30, 40),
    "overhanging": (50, 40, WIDTH + 2, HEIGHT + 2),
    "rounded": (0, 0, WIDTH + 0.5, HEIGHT),
    "outside": (WIDTH + 5, 0, WIDTH + 9, 9),
    "flat": (10, 20, 30, 20),
    "again": (10, 12, 30, 40),
}
KEPT = [(10, 12, 30, 40), (50, 40, WIDTH, HEIGHT), (0, 0, WIDTH + 0.5, HEIGHT)]
SUMMARY = (
    "repaired 1 box(es) clipped to the image, 1 box(es) outside the image dropped, 1 empty box(es) dropped, "
    "1 repeated box(es) dropped"
)


def make_kitti(root, images=1):
    for folder in ("image_2", "label_2"):
        (root / "training" / folder).mkdir(parents=True)
    (root / "ImageSets").mkdir()
    names = [f"{number:06d}" for number in range(images)]
    (root / "ImageSets/train.txt").write_text("\n".join(names))
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"training/image_2/{name}.png")
        text = "".join(LINE.format(" ".join(map(str, box))) for box in BOXES.values())
        (root / f"training/label_2/{name}.txt").write_text(text if name == "000000" else "")
    return f"kitti:{root}:train:Car"


def make_coco(root, size=(WIDTH, HEIGHT)):
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "0.png")
    annotations = [
        dict(id=i, image_id=0, category_id=1, bbox=[a, b, c - a, d - b], area=(c - a) * (d - b), iscrowd=0)
        for i, (a, b, c, d) in enumerate(BOXES.values())
    ]
    images = [dict(id=0, file_name="0.png", width=size[0], height=size[1])]
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name="Car")])
    (root / "train.json").write_text(json.dumps(content))
    return f"coco:{root}/train.json"


def corners(annotation):
    a, b, c, d = annotation["bbox"]
    return (a, b, c, d) if "type" in annotation else (a, b, a + c, b + d)


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("clockdistill"), "propagate", True)
    return caplog


@pytest.mark.parametrize("make", [make_kitti, make_coco])
def test_boxes_are_repaired_and_counted_in_one_line(tmp_path, log, make):
    name = make(tmp_path)
    register_by_name(name)
    (record,) = DatasetCatalog.get(name)
    assert [corners(annotation) for annotation in record["annotations"]] == KEPT
    (message,) = [record.getMessage() for record in log.records]
    assert set(message.removeprefix(f"{name}: repaired ").partition(";")[0].split(", ")) == set(
        SUMMARY.removeprefix("repaired ").split(", ")
    )
    with reading(ReadingPolicy(strict=True)), pytest.raises(UserError, match="the first of 4 faults"):
        DatasetCatalog.get(name)


@pytest.mark.parametrize("make", [make_kitti, make_coco])
def test_the_check_counts_repairs(tmp_path, capsys, monkeypatch, make):
    monkeypatch.setattr(check, "plot", lambda *_: None)
    assert check.main([make(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("repaired: ") == 4
    for what in ("box(es) clipped to the image", "box(es) outside the image dropped", "empty box(es) dropped"):
        assert f"| {what:33} |       1 |" in printed


def test_the_size_is_that_of_the_file(tmp_path, log):
    name = make_coco(tmp_path, size=(HEIGHT, WIDTH))
    register_by_name(name)
    (record,) = DatasetCatalog.get(name)
    assert (record["width"], record["height"]) == (WIDTH, HEIGHT)
    assert [corners(annotation) for annotation in record["annotations"]] == KEPT
    assert "1 image size(s) taken from the file" in log.text
    # evaluation compares with the repaired annotations
    assert MetadataCatalog.get(name).get("json_file") is None


def test_boxes_for_another_size_are_an_error(tmp_path):
    """For images that were cropped after they were annotated."""
    name = make_coco(tmp_path, size=(2 * WIDTH, HEIGHT + 20))
    register_by_name(name)
    with pytest.raises(
        UserError, match=r"annotation 1: box \(50, 40, 66, 50\) exceeds the 64x48 .* one of 128x68; scale"
    ):
        DatasetCatalog.get(name)


@pytest.mark.parametrize("factor", [0.5, 2])
def test_images_that_were_resized_are_an_error(tmp_path, factor):
    """Even if all boxes fit."""
    name = make_coco(tmp_path, size=(round(factor * WIDTH) + 1, round(factor * HEIGHT)))
    register_by_name(name)
    with pytest.raises(
        UserError, match=r"0\.png is 64x48, not \d+x\d+; scale its boxes and correct its width and height"
    ):
        DatasetCatalog.get(name)


def test_an_orientation_that_was_ignored_is_an_error(tmp_path):
    name = make_coco(tmp_path)
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "0.png", exif=orientation)
    register_by_name(name)
    with pytest.raises(
        UserError, match=r"0\.png is 48x64, not 64x48, because of its EXIF orientation; save it without"
    ):
        DatasetCatalog.get(name)


@pytest.mark.parametrize(("bad", "is_accepted"), [(1, True), (2, False)])
def test_at_most_one_percent_of_the_images_is_left_out(tmp_path, log, bad, is_accepted):
    name = make_kitti(tmp_path, images=100)
    register_by_name(name)
    for number in range(bad):
        path = tmp_path / f"training/image_2/{number + 1:06d}.png"
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cannot read image .*000001\.png: "):
        DatasetCatalog.get(name)
    with reading(ReadingPolicy(skip_bad_images=True)):
        if is_accepted:
            assert len(DatasetCatalog.get(name)) == 99
            assert "left out 1 of 100 images that cannot be read: " in log.text
            assert "000001.png" in log.text
        else:
            with pytest.raises(UserError, match=r"2 of 100 images .* cannot be read, more than 1%, such as .*000001"):
                DatasetCatalog.get(name)
