import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

import make_street_scenes
from clockdistill.data import read_kitti
from clockdistill.data.builtin import STREET_CLASSES
from streetscape import compose, draw_scene
from streetscape.camera import SUPERSAMPLING, Canvas
from streetscape.painting import paint_object

SCRIPT = make_street_scenes.__file__
SIZE = 320, 96


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


def test_scenes_depend_on_the_seed_but_not_on_the_number_of_jobs(scenes, tmp_path):
    make(tmp_path / "again", "--jobs", "1")
    make(tmp_path / "other", "--jobs", "2", "--seed", "1")
    again, other, first = files(tmp_path / "again"), files(tmp_path / "other"), files(scenes)
    assert again == first
    image = Path("training/image_2/000000.png")
    assert other[image] != first[image]


def test_kitti_loader_reads_scenes(scenes):
    train, val = (read_kitti(scenes, split, STREET_CLASSES)[0] for split in ("train", "val"))
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
    """Return the corners (8, 3) of a KITTI 3D box, with its origin at the center of the bottom face."""
    c, s = np.cos(rotation), np.sin(rotation)
    points = [(i * length / 2, -j * height, k * width / 2) for i in (-1, 1) for j in (0, 1) for k in (-1, 1)]
    return np.array([(c * a + s * b + x, h + y, -s * a + c * b + z) for a, h, b in points])


def test_boxes_lie_within_the_projected_3d_boxes(scenes):
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
            # an upright object spans most of its projected height
            assert box[3] - box[1] > 0.6 * (high - low)[1]
            checked += 1
    assert checked > 8


def covered(obj, scene, camera):
    """Return the mask (supersampled) of an unoccluded object: where it hides the background."""
    black, white = canvases = Canvas(camera), Canvas(camera)
    white.pixels[:] = 255
    for canvas in canvases:
        paint_object(replace(obj), canvas, scene.light, [])
    return (black.pixels.view(np.uint32) == white.pixels.view(np.uint32))[..., 0]


def bounds(mask):
    """Return left, top, right, bottom in pixels of the image."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / SUPERSAMPLING


@pytest.fixture(scope="module")
def ground_truth():
    """Some scenes: the scene, its objects back to front, their masks, and (numbers of a label, object index) pairs."""
    scenes = []
    for index in range(12):
        _, lines, camera = draw_scene(0, index, SIZE)
        scene = compose(np.random.default_rng(np.random.SeedSequence([0, index])), *SIZE)
        objects = scene.back_to_front()
        labels = []
        for kind, *numbers in (line.split() for line in lines):
            numbers = np.array(numbers, float)
            place = [np.abs(obj.location - numbers[10:13]).sum() + 99 * (obj.kind != kind) for obj in objects]
            if kind != "DontCare":
                labels.append((numbers, int(np.argmin(place))))
        scenes.append((scene, objects, [covered(obj, scene, camera) for obj in objects], labels))
    return scenes


def test_occlusion_level_follows_the_visible_share(ground_truth):
    levels = []
    for _, _, masks, labels in ground_truth:
        for numbers, i in labels:
            hidden = np.any([np.zeros_like(masks[i]), *masks[i + 1 :]], axis=0)
            share = (masks[i] & ~hidden).sum() / masks[i].sum()
            levels.append(3 - np.searchsorted([0.25, 0.55, 0.9], share, side="right"))
            assert numbers[1] == levels[-1]
            assert share >= 0.3
    assert set(levels) == {0, 1, 2}
    assert len(levels) > 50


def depths(obj, camera, pixels):
    """Return depths (n,), (n,) at which rays through supersampled pixels (n, 2) enter and leave the 3D box."""
    u, v = (pixels.T + 0.5) / SUPERSAMPLING
    rays = np.stack([(u - camera.cx) / camera.focal, (v - camera.cy) / camera.focal, np.ones(len(u))], -1)
    rays, origin = rays @ obj.rotation.T, -obj.location @ obj.rotation.T
    length, height, width = obj.model.size
    low, high = np.array([-length / 2, 0, -width / 2]), np.array([length / 2, height, width / 2])
    slabs = np.sort([(low - origin) / rays, (high - origin) / rays], axis=0)
    return slabs[0].max(1), slabs[1].min(1)


def test_nearer_objects_are_painted_over_farther_ones(ground_truth):
    checked = 0
    for scene, objects, masks, _ in ground_truth:
        for first, second in combinations(range(len(objects)), 2):
            pixels = cv2.findNonZero((masks[first] & masks[second]).view(np.uint8))
            if pixels is None:
                continue
            (enter, leave), (behind, end) = (depths(objects[i], scene.camera, pixels[:, 0]) for i in (first, second))
            hit = (enter < leave) & (behind < end)
            assert not (hit & (leave < behind)).any()
            checked += hit.any()
    assert checked > 1000


def test_boxes_are_tight(ground_truth):
    slack = []
    for _, _, masks, labels in ground_truth:
        slack += [np.abs(bounds(masks[i]) - numbers[3:7]).max() for numbers, i in labels]
    # vertices extend slightly beyond the pixels whose centers the polygon covers
    assert max(slack) < 1.1
    assert np.mean(slack) < 0.4


def test_truncation_is_the_share_outside_the_image(ground_truth):
    cut = 0
    width, height = SIZE
    for scene, objects, masks, labels in ground_truth:
        camera = scene.camera
        wide = replace(
            camera, width=5 * width, height_px=5 * height, cx=camera.cx + 2 * width, cy=camera.cy + 2 * height
        )
        for numbers, i in labels:
            left, top, right, bottom = bounds(masks[i])
            if left > 0 and top > 0 and right < width and bottom < height:
                assert numbers[0] == 0
                continue
            box = bounds(covered(objects[i], scene, wide)) - np.tile([2 * width, 2 * height], 2)
            inside = np.clip(box, 0, [width, height] * 2)
            share = 1 - np.prod(inside[2:] - inside[:2]) / np.prod(box[2:] - box[:2])
            assert numbers[0] == pytest.approx(share, abs=0.02)
            cut += share > 0.05
    assert cut > 5


def test_existing_datasets_are_kept(scenes, tmp_path):
    before = files(scenes)
    same, different = make(scenes), make(scenes, "--seed", "3")
    assert same.returncode == 0
    assert "already holds" in same.stdout
    assert different.returncode == 1
    assert "choose another --root" in different.stderr
    assert files(scenes) == before


def test_invalid_size_is_rejected(tmp_path):
    result = make(tmp_path / "x", "--size", "wide")
    assert result.returncode != 0
    assert "WIDTHxHEIGHT" in result.stderr
    assert not (tmp_path / "x").exists()
