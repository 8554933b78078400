import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

import make_street_scenes
from clockdistill.data import load_kitti
from clockdistill.data.builtin import STREET_CLASSES
from streetscape import compose, draw_scene
from streetscape.camera import SUPERSAMPLING, Canvas
from streetscape.painting import paint_thing

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


def covered(thing, scene, camera):
    """The (supersampled) pixels that the thing alone covers, bool: whatever lay beneath, it looks the same."""
    black, white = canvases = Canvas(camera), Canvas(camera)
    white.pixels[:] = 255
    for canvas in canvases:
        paint_thing(replace(thing), canvas, scene.light, [])
    return (black.pixels.view(np.uint32) == white.pixels.view(np.uint32))[..., 0]


def bounds(mask):
    """left, top, right, bottom in pixels of the image."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / SUPERSAMPLING


@pytest.fixture(scope="module")
def truths():
    """Of some scenes: the scene, its things from back to front, their masks, and (a label's numbers, its thing)."""
    found = []
    for index in range(12):
        _, lines, camera = draw_scene(0, index, SIZE)
        scene = compose(np.random.default_rng(np.random.SeedSequence([0, index])), *SIZE)
        things = scene.back_to_front()
        labels = []
        for kind, *numbers in (line.split() for line in lines):
            numbers = np.array(numbers, float)
            place = [np.abs(thing.location - numbers[10:13]).sum() + 99 * (thing.kind != kind) for thing in things]
            if kind != "DontCare":
                labels.append((numbers, int(np.argmin(place))))
        found.append((scene, things, [covered(thing, scene, camera) for thing in things], labels))
    return found


def test_occlusion_is_the_share_that_others_hide(truths):
    levels = []
    for _, _, masks, labels in truths:
        for numbers, i in labels:
            hidden = np.any([np.zeros_like(masks[i]), *masks[i + 1 :]], axis=0)
            share = (masks[i] & ~hidden).sum() / masks[i].sum()
            levels.append(3 - np.searchsorted([0.25, 0.55, 0.9], share, side="right"))
            assert numbers[1] == levels[-1]
            assert share >= 0.3
    assert set(levels) == {0, 1, 2}
    assert len(levels) > 50


def stretch(thing, camera, pixels):
    """Depths (n,), (n,) at which rays through supersampled pixels (n, 2) enter and leave the thing's box in space."""
    u, v = (pixels.T + 0.5) / SUPERSAMPLING
    rays = np.stack([(u - camera.cx) / camera.focal, (v - camera.cy) / camera.focal, np.ones(len(u))], -1)
    rays, origin = rays @ thing.rotation.T, -thing.location @ thing.rotation.T
    length, height, width = thing.model.size
    low, high = np.array([-length / 2, 0, -width / 2]), np.array([length / 2, height, width / 2])
    slabs = np.sort([(low - origin) / rays, (high - origin) / rays], axis=0)
    return slabs[0].max(1), slabs[1].min(1)


def test_the_nearer_of_two_is_painted_over_the_other(truths):
    checked = 0
    for scene, things, masks, _ in truths:
        for first, second in combinations(range(len(things)), 2):
            pixels = cv2.findNonZero((masks[first] & masks[second]).view(np.uint8))
            if pixels is None:
                continue
            (enter, leave), (behind, end) = (stretch(things[i], scene.camera, pixels[:, 0]) for i in (first, second))
            hit = (enter < leave) & (behind < end)
            assert not (hit & (leave < behind)).any()
            checked += hit.any()
    assert checked > 1000


def test_boxes_are_tight(truths):
    slack = []
    for _, _, masks, labels in truths:
        slack += [np.abs(bounds(masks[i]) - numbers[3:7]).max() for numbers, i in labels]
    # the vertices of a polygon reach a little beyond the pixels whose middles it covers
    assert max(slack) < 1.1
    assert np.mean(slack) < 0.4


def test_truncation_is_the_share_outside_the_image(truths):
    cut = 0
    width, height = SIZE
    for scene, things, masks, labels in truths:
        camera = scene.camera
        wide = replace(
            camera, width=5 * width, height_px=5 * height, cx=camera.cx + 2 * width, cy=camera.cy + 2 * height
        )
        for numbers, i in labels:
            left, top, right, bottom = bounds(masks[i])
            if left > 0 and top > 0 and right < width and bottom < height:
                assert numbers[0] == 0
                continue
            box = bounds(covered(things[i], scene, wide)) - np.tile([2 * width, 2 * height], 2)
            inside = np.clip(box, 0, [width, height] * 2)
            share = 1 - np.prod(inside[2:] - inside[:2]) / np.prod(box[2:] - box[:2])
            assert numbers[0] == pytest.approx(share, abs=0.02)
            cut += share > 0.05
    assert cut > 5


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
