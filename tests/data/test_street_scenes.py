import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import make_street_scenes
from clockdistill.data import load_kitti
from clockdistill.data.builtin import STREET_CLASSES

SCRIPT = make_street_scenes.__file__


def make(root, *options):
    command = [sys.executable, SCRIPT, "--root", str(root), "--train", "5", "--val", "2", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "street_scenes"
    assert make(root, "--jobs", "2").returncode == 0
    return root


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_seed_decides_and_the_number_of_jobs_does_not(scenes, tmp_path):
    make(tmp_path / "again", "--jobs", "1")
    make(tmp_path / "other", "--jobs", "2", "--seed", "1")
    again, other, first = files(tmp_path / "again"), files(tmp_path / "other"), files(scenes)
    assert again == first
    image = Path("training/image_2/000000.png")
    assert other[image] != first[image]


def test_the_kitti_loader_reads_them(scenes):
    train, val = (load_kitti(scenes, split, STREET_CLASSES) for split in ("train", "val"))
    assert (len(train), len(val)) == (5, 2)
    for record in train + val:
        assert cv2.imread(record["file_name"]).shape == (record["height"], record["width"], 3) == (96, 320, 3)
        for annotation in record["annotations"]:
            left, top, right, bottom = annotation["bbox"]
            assert 0 <= left < right <= 320
            assert 0 <= top < bottom <= 96
            assert annotation["occluded"] in (-1, 0, 1, 2, 3)
    assert sum(not a["iscrowd"] for r in train for a in r["annotations"]) > 10


def corners(height, width, length, x, y, z, rotation):
    """KITTI's box in space, (8, 3): the origin lies under the middle of the object."""
    c, s = np.cos(rotation), np.sin(rotation)
    points = [(i * length / 2, -j * height, k * width / 2) for i in (-1, 1) for j in (0, 1) for k in (-1, 1)]
    return np.array([(c * a + s * b + x, h + y, -s * a + c * b + z) for a, h, b in points])


def test_boxes_lie_within_the_projection_of_their_objects(scenes):
    checked = 0
    for path in sorted((scenes / "training" / "label_2").iterdir()):
        calibration = dict(
            line.split(": ") for line in (scenes / "training" / "calib" / path.name).read_text().splitlines()
        )
        camera = np.array(calibration["P2"].split(), float).reshape(3, 4)
        for line in path.read_text().splitlines():
            kind, truncated, _, _, *numbers = line.split()
            numbers = [float(n) for n in numbers]
            box, space = np.array(numbers[:4]), numbers[4:]
            if kind == "DontCare" or float(truncated) > 0 or space[5] < 3:
                continue
            points = np.c_[corners(*space), np.ones(8)] @ camera.T
            points = points[:, :2] / points[:, 2:]
            low, high = points.min(0), points.max(0)
            assert (box[:2] >= low - 1.5).all()
            assert (box[2:] <= high + 1.5).all()
            # an upright object fills the height of its box in space
            assert box[3] - box[1] > 0.6 * (high - low)[1]
            checked += 1
    assert checked > 8


def test_truncation_is_the_share_outside_the_image(scenes):
    for path in (scenes / "training" / "label_2").iterdir():
        for line in path.read_text().splitlines():
            fields = line.split()
            left, top, right, bottom = map(float, fields[4:8])
            touches = min(left, top) <= 0 or right >= 320 or bottom >= 96
            if fields[0] != "DontCare" and not touches:
                assert float(fields[1]) == 0


def test_what_is_there_is_kept(scenes, tmp_path):
    before = files(scenes)
    same, different = make(scenes), make(scenes, "--seed", "3")
    assert same.returncode == 0
    assert "there already" in same.stdout
    assert different.returncode == 1
    assert "choose another --root" in different.stderr
    assert files(scenes) == before


def test_a_size_that_is_none(tmp_path):
    result = make(tmp_path / "x", "--size", "wide")
    assert result.returncode != 0
    assert "WIDTHxHEIGHT" in result.stderr
    assert not (tmp_path / "x").exists()
