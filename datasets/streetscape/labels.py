"""KITTI's label and calibration files."""

from itertools import combinations

import cv2
import numpy as np

from .camera import SUPERSAMPLING

BASELINE = 0.54  # metres between KITTI's left and right camera
MIN_HEIGHT, MIN_PIXELS, MIN_VISIBLE = 14.0, 40.0, 0.3  # an object that shows less than this is a DontCare region
OCCLUSION_LEVELS = (0.9, 0.55, 0.25)  # at least this share visible: level 0, 1, 2; less: 3
DONT_CARE = "DontCare -1 -1 -10 {:.2f} {:.2f} {:.2f} {:.2f} -1 -1 -1 -1000 -1000 -1000 -10"


def label_lines(things, canvas):
    """Lines of KITTI's label file for the things, in the order in which they were painted on the canvas."""
    visible = cv2.calcHist([canvas.pixels], [3], None, [256], [0, 256]).ravel()
    lines, ignored = [], []
    for thing in things:
        if not thing.number or not visible[thing.number]:
            continue
        box, truncation = visible_box(thing, canvas.camera)
        width, height = box[2:] - box[:2]
        share, area = visible[thing.number] / thing.pixels, visible[thing.number] / SUPERSAMPLING**2
        if thing.kind == "DontCare" or share < MIN_VISIBLE or area < MIN_PIXELS or height < MIN_HEIGHT:
            if width > 0.5 and height > 0.5:
                ignored.append(box)
            continue
        lines.append(object_line(thing, truncation, sum(share < level for level in OCCLUSION_LEVELS), box))
    return lines + [DONT_CARE.format(*box) for box in merge(ignored)]


def visible_box(thing, camera):
    """The box (4,) in pixels around what of the thing lies inside the image, and the share that lies outside.

    What other things hide counts as there, as in KITTI.
    """
    box = np.clip(thing.box, 0, (camera.width, camera.height_px) * 2)
    truncation = 1 - np.prod(box[2:] - box[:2]) / np.prod(thing.box[2:] - thing.box[:2])
    # the highest point of a lorry may lie beyond the border that cuts it
    return np.clip(box, np.tile(thing.inside[:2], 2), np.tile(thing.inside[2:], 2)), truncation


def object_line(thing, truncation, occlusion, box):
    x, y, z = thing.location
    alpha = (thing.rotation_y - np.arctan2(x, z) + np.pi) % (2 * np.pi) - np.pi
    length, height, width = thing.model.size
    numbers = (alpha, *box, height, width, length, x, y, z, thing.rotation_y)
    return f"{thing.kind} {truncation:.2f} {occlusion} " + " ".join(f"{n:.2f}" for n in numbers)


def merge(boxes):
    """Unite boxes that overlap until none do."""
    boxes = list(boxes)
    for i, j in combinations(range(len(boxes)), 2):
        if (np.maximum(boxes[i][:2], boxes[j][:2]) < np.minimum(boxes[i][2:], boxes[j][2:])).all():
            other = boxes.pop(j)
            boxes[i] = np.concatenate([np.minimum(other[:2], boxes[i][:2]), np.maximum(other[2:], boxes[i][2:])])
            return merge(boxes)
    return boxes


def calibration(camera):
    """The seven matrices of KITTI's calib files. Left and right camera, no rectification, a laser scanner on top."""
    rows = {}
    for name, shift in (("P0", 0), ("P1", BASELINE), ("P2", 0), ("P3", BASELINE)):
        rows[name] = [camera.focal, 0, camera.cx, -camera.focal * shift, 0, camera.focal, camera.cy, 0, 0, 0, 1, 0]
    rows["R0_rect"] = [1, 0, 0, 0, 1, 0, 0, 0, 1]
    rows["Tr_velo_to_cam"] = [0, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0]
    rows["Tr_imu_to_velo"] = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    return "".join(f"{name}: " + " ".join(f"{value:.12e}" for value in row) + "\n" for name, row in rows.items())
