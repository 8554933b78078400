"""KITTI's 2D object benchmark (Geiger et al., CVPR 2012), read in its own layout.

    ROOT/training/image_2/000000.png …    ROOT/training/label_2/000000.txt …    ROOT/ImageSets/{train,val}.txt

Each line of a label file has 15 fields: type, truncation, occlusion, alpha, left, top, right, bottom, and seven that
describe the object in 3D. A line of a result file adds a score. The center of pixel (0, 0) is the origin.
"""

import functools
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from detectron2.structures import BoxMode

from ..errors import MissingDataset, UserError
from .catalog import Fault, Reading, Repair, fit_box, list_folder, measure_images, register

KITTI_CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
CLASS_SETS = {"all": KITTI_CLASSES, "three": ("Car", "Pedestrian", "Cyclist")}
# detections of a class on objects of its neighbor count as neither true nor false positives
NEIGHBOR = {"Car": "Van", "Pedestrian": "Person_sitting"}
DONT_CARE = "DontCare"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

# Class names in the order of their labels, or a mapping of KITTI's types to class names.
Classes = Sequence[str] | Mapping[str, str]


class Line(NamedTuple):
    """The 2D fields of one line of a label or result file."""

    number: int
    type: str
    truncated: float
    occluded: int
    box: tuple[float, float, float, float]  # left, top, right, bottom
    score: float | None


@dataclass(frozen=True)
class Difficulty:
    """What an object must satisfy to count at one of the benchmark's difficulties."""

    min_height: float  # pixels, exclusive
    max_occluded: int  # KITTI's level of occlusion
    max_truncated: float  # share of the object outside the image

    def admits(self, height, occluded, truncated):
        """Return whether objects count, given numbers or arrays of them."""
        return (height > self.min_height) & (occluded <= self.max_occluded) & (truncated <= self.max_truncated)


DIFFICULTIES = {
    "easy": Difficulty(40, 0, 0.15),
    "moderate": Difficulty(25, 1, 0.30),
    "hard": Difficulty(25, 2, 0.50),
}


@functools.cache
def parse_lines(content: bytes) -> tuple[tuple[Line, ...], tuple[tuple[int, str, Repair | None], ...]]:
    """Return the valid lines of a label or result file, and (line number, fault, repair) for each invalid one.

    The cache is keyed by content rather than by path, so a file that has changed is parsed again.
    """
    lines, faults, first_seen = [], [], {}
    for number, text in enumerate(content.decode(errors="replace").splitlines(), start=1):
        fields = text.split()
        if not fields:
            continue
        try:
            line = parse_line(number, fields)
        except ValueError as error:
            faults.append((number, str(error), Repair.DROP_EMPTY if isinstance(error, EmptyBox) else None))
            continue
        key = tuple(fields[:15])
        if line.type != DONT_CARE and first_seen.setdefault(key, number) != number:
            text = f"same object as on line {first_seen[key]}; remove one of them"
            faults.append((number, text, Repair.DROP_REPEATED))
        else:
            lines.append(line)
    return tuple(lines), tuple(faults)


class EmptyBox(ValueError):
    """A box without width or height."""


def parse_line(number: int, fields: list[str]) -> Line:
    """Parse one line; a `ValueError` says what is wrong with it."""
    if len(fields) not in (15, 16):
        raise ValueError(f"expected 15 fields, got {len(fields)}; correct or remove the line")
    try:
        numbers = [float(field) for field in fields[1:]]
    except ValueError as error:
        raise ValueError(f"{error}; all fields after the type must be numbers") from error
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a field is NaN or infinite; all fields after the type must be finite numbers")
    left, top, right, bottom = box = tuple(numbers[3:7])
    if not (left < right and top < bottom):
        text = f"({left:g}, {top:g}, {right:g}, {bottom:g})"
        kind = EmptyBox if left <= right and top <= bottom else ValueError
        raise kind(f"inverted or empty box {text}; the order is left, top, right, bottom")
    return Line(number, fields[0], numbers[0], int(numbers[1]), box, numbers[14] if len(numbers) == 15 else None)


def parse_classes(text: str = "all") -> Classes:
    """Parse `all` (KITTI's eight), `three` (the usual ones), or types joined by `+`, where `Van:Car` makes a Van a Car.

    Raises:
        UserError: a type or a name is empty.
    """
    if text in CLASS_SETS:
        return CLASS_SETS[text]
    pairs = [part.partition(":") for part in text.split("+")]
    if not all(kitti_type and (name or not colon) for kitti_type, colon, name in pairs):
        raise UserError(f"invalid classes {text}; write all, three, or types such as Car+Van:Car+Pedestrian")
    return {kitti_type: name or kitti_type for kitti_type, _, name in pairs}


def class_names(classes: Classes) -> list[str]:
    """Return the class names in the order of their labels."""
    return list(dict.fromkeys(as_mapping(classes).values()))


def as_mapping(classes: Classes) -> dict[str, str]:
    return dict(classes) if isinstance(classes, Mapping) else {name: name for name in classes}


def read_kitti(root: Path, split: str, classes: Classes, hint: str = "check the path", decode: bool = False) -> Reading:
    """Return a split, repaired.

    Boxes are absolute (left, top, right, bottom). What the benchmark ignores becomes a crowd region: DontCare for
    every class, and a neighbor that is not in `classes` (Van, Person_sitting) for its class (Car, Pedestrian). Objects
    of other types are background, as in the benchmark. Annotations keep the line's `type`, `truncated`, `occluded`
    and, in a result file, `score`.

    Args:
        root: folder that contains `training` and, optionally, `ImageSets`.
        split: name of a file in `ImageSets`; without that file, "train" or "val" of a fixed 80:20 split.
        classes: names in the order of their labels, or a mapping of KITTI's types to names.
        hint: how to fix a missing dataset, for the error message.
        decode: decode every image rather than check only its header and end.

    Raises:
        UserError: there is no dataset, no label or no such split.
    """
    images = find_images(root, hint)
    folder = root / "training" / "label_2"
    labels = list_folder(folder)
    if not labels:
        raise UserError(f"{folder} has no labels; add them, or use training data, as KITTI's test set has none")
    frames, faults = read_split(root, split, sorted(images))
    mapping, names = as_mapping(classes), class_names(classes)
    sizes = measure_images([images[frame] for frame in frames if frame in images], decode)
    records = []
    for number, (frame, source) in enumerate(frames.items()):
        if frame not in images:
            text = f"{source}: frame {frame} has no image in training/image_2; add it, or remove the frame"
            faults.append(Fault(text))
            continue
        image, path = images[frame], folder / f"{frame}.txt"
        size = sizes[image]
        is_readable = not isinstance(size, str)
        if not is_readable:
            faults.append(Fault(size, bad_image=str(image)))
        if path.name not in labels:
            text = f"{image}: label file {path} does not exist; add it, empty if there are no objects"
            faults.append(Fault(text))
            continue
        lines, invalid = parse_lines(path.read_bytes())
        lines, more = fit_lines(lines, mapping, size if is_readable else None)
        faults += [
            Fault(f"{path}:{line}: {text}", repair)
            for line, text, repair in sorted([*invalid, *more], key=lambda f: f[0])
        ]
        if is_readable:
            record = dict(file_name=str(image), image_id=number, height=size[1], width=size[0])
            records.append(record | dict(annotations=make_annotations(lines, mapping, names)))
    return Reading(records, faults)


def find_images(root: Path, hint: str) -> dict[str, Path]:
    """Map frame names to image files."""
    folder = root / "training" / "image_2"
    names = map(Path, list_folder(folder))
    images = {name.stem: folder / name for name in names if name.suffix.lower() in IMAGE_SUFFIXES}
    if not images:
        raise MissingDataset(f"no KITTI dataset at {root}: {folder} has no images; {hint}")
    return images


def read_split(root: Path, split: str, frames: list[str]) -> tuple[dict[str, str], list[Fault]]:
    """Return the frames of a split, each with the file and line that list it, and the split's faults.

    Args:
        root: folder that contains, optionally, `ImageSets`.
        split: name of the split.
        frames: names of all frames, sorted.
    """
    path = root / "ImageSets" / f"{split}.txt"
    sources, faults = {}, []
    if path.is_file():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            for frame in line.split():
                if frame in sources:
                    faults.append(Fault(f"{path}:{number}: duplicate frame {frame}; remove it"))
                sources.setdefault(frame, f"{path}:{number}")
    elif split in ("train", "val"):
        shuffled = random.Random(0).sample(frames, len(frames))
        count = round(0.8 * len(frames))
        sources = dict.fromkeys(sorted(shuffled[:count] if split == "train" else shuffled[count:]), str(path))
    else:
        raise UserError(f"{path} does not exist; add it, or use train or val, which work without a file")
    if not sources:
        raise UserError(f"the {split} split of {root} has no frames; list them in {path}")
    return sources, faults


def fit_lines(
    lines: Sequence[Line], mapping: Mapping[str, str], size: tuple[int, int] | None
) -> tuple[list[Line], list[tuple[int, str, Repair | None]]]:
    """Fit boxes into their image, given its (width, height), and check the types.

    Returns:
        The lines that are left, and (line number, fault, repair) for each fault.
    """
    fitted, faults = [], []
    for line in lines:
        if line.type not in mapping and line.type not in (*KITTI_CLASSES, DONT_CARE):
            known = ", ".join(dict.fromkeys([*KITTI_CLASSES, *mapping]))
            faults.append((line.number, f"unknown type {line.type}; use one of {known}", None))
        box = line.box
        if size is not None:
            box, text, repair = fit_box(line.box, *size)
            if repair:
                faults.append((line.number, text, repair))
        if box is not None:
            fitted.append(line._replace(box=box))
    return fitted, faults


def make_annotations(lines: Sequence[Line], mapping: Mapping[str, str], names: Sequence[str]) -> list[dict]:
    """Return Detectron2's annotations, with one per class for each DontCare region."""
    annotations = []
    for line in lines:
        is_object = line.type in mapping
        if is_object:
            labels = [names.index(mapping[line.type])]
        elif line.type == DONT_CARE:
            labels = range(len(names))
        else:
            labels = [names.index(mapping[t]) for t in mapping if NEIGHBOR.get(t) == line.type]
        common = dict(
            type=line.type,
            bbox=list(line.box),
            bbox_mode=BoxMode.XYXY_ABS,
            truncated=line.truncated,
            occluded=line.occluded,
            iscrowd=int(not is_object),
        )
        if line.score is not None:
            common["score"] = line.score
        annotations += [dict(common, category_id=label) for label in labels]
    return annotations


def register_kitti(
    name: str, folder: str, split: str, classes: Classes = KITTI_CLASSES, hint: str | None = None
) -> None:
    """Add a split to the catalogs, or replace the dataset of the same name.

    Args:
        name: name in the catalogs.
        folder: root of the dataset; a relative path starts at `$DETECTRON2_DATASETS` as it is set on loading.
        split, classes: see `read_kitti`.
        hint: how to fix a missing dataset, for the error message.
    """
    hint = hint or f"set DETECTRON2_DATASETS to the folder that contains {folder}/training"

    def read(decode: bool) -> Reading:
        datasets = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
        return read_kitti(datasets / folder, split, classes, hint, decode)

    register(name, read, thing_classes=class_names(classes))
