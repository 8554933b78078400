"""KITTI's metric by brute force, and random scenes full of ties, limits and ignored objects.

A label is (type, truncated, occluded, left, top, right, bottom), a detection (type, left, top, right, bottom, score);
a scene is a list of images, each a list of labels and a list of detections.
"""

import math

from clockdistill.data import KITTI_CLASSES

CLASSES = ("Car", "Pedestrian", "Cyclist")
LEVELS = {"easy": (40, 0, 0.15), "moderate": (25, 1, 0.3), "hard": (25, 2, 0.5)}
TYPES = (*KITTI_CLASSES, "DontCare", *("Car", "Pedestrian") * 4, "Cyclist", "Cyclist")
TRUNCATED = (*(0,) * 8, 0.15, 0.16, 0.3, 0.31, 0.5, 0.51)
HEIGHTS = (24.99, 25, 25.5, 30, 39.99, 40, 41, 60)


def common_area(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0


def box_area(a):
    return (a[2] - a[0]) * (a[3] - a[1])


def brute_force(scene):
    return {
        f"{name}/{level}/AP{points}": ap
        for name in CLASSES
        for level in LEVELS
        for points, ap in brute_force_ap(scene, name, level).items()
    }


def brute_force_ap(scene, name, level):
    min_overlap = 0.7 if name == "Car" else 0.5
    neighbor = {"Car": "Van", "Pedestrian": "Person_sitting", "Cyclist": None}[name]
    min_height, max_occluded, max_truncated = LEVELS[level]

    images = []
    for labels, detections in scene:
        objects = []
        for kind, truncated, occluded, *box in labels:
            if kind == name:
                hard = occluded > max_occluded or truncated > max_truncated or box[3] - box[1] <= min_height
                objects.append((box, hard))
            elif kind == neighbor:
                objects.append((box, True))
        regions = [box for kind, _, _, *box in labels if kind == "DontCare"]
        candidates = []
        for kind, *box, score in detections:
            if int(abs(box[1] - box[3])) < min_height:
                candidates.append((box, score, "small"))
            elif kind == name:
                candidates.append((box, score, "counts"))
        images.append((objects, regions, candidates))

    total = 0
    scores = []
    for objects, _, candidates in images:
        taken = set()
        for box, ignored in objects:
            total += not ignored
            best = None
            for j, (other, score, _) in enumerate(candidates):
                if j not in taken and iou(box, other) > min_overlap and (best is None or score > candidates[best][1]):
                    best = j
            if best is not None:
                taken.add(best)
                if not ignored and candidates[best][2] == "counts":
                    scores.append(candidates[best][1])
    if total == 0:
        return {40: math.nan, 11: math.nan}

    thresholds = brute_force_thresholds(scores, total)
    curve = [0.0] * 41
    for i in range(len(thresholds)):
        tp = fp = 0
        for objects, regions, candidates in images:
            image_tp, image_fp = count(objects, regions, candidates, thresholds[i], min_overlap)
            tp += image_tp
            fp += image_fp
        curve[i] = tp / (tp + fp) if tp + fp > 0 else math.nan
    for i in range(41):
        for later in curve[i + 1 :]:
            if later > curve[i]:
                curve[i] = later
    return {40: 100 * sum(curve[1:]) / 40, 11: 100 * sum(curve[0:41:4]) / 11}


def brute_force_thresholds(scores, total):
    scores = sorted(scores)
    scores.reverse()
    thresholds = []
    target = 0.0
    for i in range(len(scores)):
        this = (i + 1) / total
        following = (i + 2) / total
        is_last = i == len(scores) - 1
        if is_last or following - target >= target - this:
            thresholds.append(scores[i])
            target += 1.0 / 40.0
    return thresholds


def iou(a, b):
    common = common_area(a, b)
    return common / (box_area(a) + box_area(b) - common) if common else 0


def count(objects, regions, candidates, threshold, min_overlap):
    candidates = [x for x in candidates if x[1] >= threshold]
    taken = set()
    tp = fp = 0
    for box, ignored in objects:
        best = None
        for j, (other, _, state) in enumerate(candidates):
            if j in taken or state != "counts" or iou(box, other) <= min_overlap:
                continue
            if best is None or iou(box, other) > iou(box, candidates[best][0]):
                best = j
        if best is None:
            for j, (other, _, state) in enumerate(candidates):
                if j not in taken and state == "small" and iou(box, other) > min_overlap:
                    best = j
                    break
        if best is not None:
            taken.add(best)
            if not ignored and candidates[best][2] == "counts":
                tp += 1
    for j, (box, _, state) in enumerate(candidates):
        if j in taken or state == "small":
            continue
        in_region = False
        for region in regions:
            common = common_area(box, region)
            if common and common / box_area(box) > min_overlap:
                in_region = True
        if not in_region:
            fp += 1
    return tp, fp


def random_box(rng):
    left, top = rng.choice((0, 20, 50, 300)), rng.choice((0, 3, 100))
    return [left, top, left + rng.choice((20, 50, 100)), top + rng.choice(HEIGHTS)]


def near(rng, box):
    """A box with an IoU that is often at the threshold, just above or just below."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    kind = rng.randrange(8)
    if kind == 0:
        return [left, top, left + rng.choice((0.5, 0.51, 0.7, 0.71, 0.49, 0.69)) * width, bottom]
    if kind == 1:
        return [left, top, right, top + rng.choice((0.5, 0.7, 0.75, 0.9)) * height]
    if kind == 2:
        shift = rng.choice((1, 2, 3, 5))
        return [left + shift, top, right + shift, bottom]
    if kind == 3:
        return [left, top, right, top + rng.choice(HEIGHTS)]
    return list(box)


def random_scene(rng, images=3, objects=5, detections=8, types=TYPES, noise=0.25):
    scene = []
    for _ in range(rng.randint(1, images)):
        labels = []
        for _ in range(rng.randint(0, objects)):
            kind = rng.choice(types)
            box = near(rng, rng.choice(labels)[3:]) if labels and rng.random() < 0.3 else random_box(rng)
            flags = (-1, -1) if kind == "DontCare" else (rng.choice(TRUNCATED), rng.choice((0, 0, 0, 0, 1, 2, 3)))
            labels.append((kind, *flags, *box))
        rows = []
        for _ in range(rng.randint(detections // 2, detections)):
            label = rng.choice(labels) if labels else None
            is_near = label is not None and rng.random() > noise
            box = near(rng, label[3:]) if is_near else random_box(rng)
            same = label is not None and label[0] in KITTI_CLASSES and rng.random() > noise
            kind = label[0] if same else rng.choice(CLASSES)
            rows.append((kind, *box, rng.choice((0.9, 0.8, 0.7, 0.5, 0.5, rng.random()))))
        scene.append((labels, rows))
    return scene
