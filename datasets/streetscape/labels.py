"""KITTI's label and calibration files."""

from itertools import combinations

import cv2
import numpy as np

from .camera import SUPERSAMPLING

BASELINE = 0.54  # meters between the left and right cameras of KITTI
# an object below any of these is labeled DontCare: height and area in pixels, visible share
MIN_HEIGHT, MIN_AREA, MIN_VISIBLE = 14.0, 40.0, 0.3
OCCLUSION_LEVELS = (0.9, 0.55, 0.25)  # minimum visible shares for levels 0, 1 and 2
DONT_CARE = "DontCare -1 -1 -10 {:.2f} {:.2f} {:.2f} {:.2f} -1 -1 -1 -1000 -1000 -1000 -10"


def label_lines(objects, canvas):
    """Return the lines of the label file: visible objects in the given order, then DontCare regions."""
    visible = cv2.calcHist([canvas.pixels], [3], None, [256], [0, 256]).ravel()
    lines, ignored = [], []
    for obj in objects:
        if not obj.id or not visible[obj.id]:
            continue
        box, truncation = visible_box(obj, canvas.camera)
        width, height = box[2:] - box[:2]
        share, area = visible[obj.id] / obj.pixels, visible[obj.id] / SUPERSAMPLING**2
        if obj.kind == "DontCare" or share < MIN_VISIBLE or area < MIN_AREA or height < MIN_HEIGHT:
            if width > 0.5 and height > 0.5:
                ignored.append(box)
            continue
        lines.append(object_line(obj, truncation, sum(share < level for level in OCCLUSION_LEVELS), box))
    return lines + [DONT_CARE.format(*box) for box in merge(ignored)]


def visible_box(obj, camera):
    """Return the object's box (4,) in pixels, clipped to the image, and the share of it that is truncated.

    As in KITTI, the box includes occluded parts.
    """
    box = np.clip(obj.box, 0, (camera.width, camera.height_px) * 2)
    truncation = 1 - np.prod(box[2:] - box[:2]) / np.prod(obj.box[2:] - obj.box[:2])
    # the highest point of a truncated truck may lie outside the image
    return np.clip(box, np.tile(obj.inside[:2], 2), np.tile(obj.inside[2:], 2)), truncation


def object_line(obj, truncation, occlusion, box):
    x, y, z = obj.location
    alpha = (obj.rotation_y - np.arctan2(x, z) + np.pi) % (2 * np.pi) - np.pi
    length, height, width = obj.model.size
    numbers = (alpha, *box, height, width, length, x, y, z, obj.rotation_y)
    return f"{obj.kind} {truncation:.2f} {occlusion} " + " ".join(f"{n:.2f}" for n in numbers)


def merge(boxes):
    """Replace overlapping boxes by their hull until none overlap."""
    boxes = list(boxes)
    for i, j in combinations(range(len(boxes)), 2):
        if (np.maximum(boxes[i][:2], boxes[j][:2]) < np.minimum(boxes[i][2:], boxes[j][2:])).all():
            other = boxes.pop(j)
            boxes[i] = np.concatenate([np.minimum(other[:2], boxes[i][:2]), np.maximum(other[2:], boxes[i][2:])])
            return merge(boxes)
    return boxes


def calibration(camera):
    """Return KITTI's calibration file: rectified cameras, and a laser scanner in the left one's place."""
    rows = {}
    for name, shift in (("P0", 0), ("P1", BASELINE), ("P2", 0), ("P3", BASELINE)):
        rows[name] = [camera.focal, 0, camera.cx, -camera.focal * shift, 0, camera.focal, camera.cy, 0, 0, 0, 1, 0]
    rows["R0_rect"] = [1, 0, 0, 0, 1, 0, 0, 0, 1]
    rows["Tr_velo_to_cam"] = [0, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0]
    rows["Tr_imu_to_velo"] = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    return "".join(f"{name}: " + " ".join(f"{value:.12e}" for value in row) + "\n" for name, row in rows.items())
