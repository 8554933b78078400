"""KITTI's 2D object benchmark (Geiger et al., CVPR 2012) in its own layout, for Detectron2's catalog.

    ROOT/training/image_2/000000.png …    ROOT/training/label_2/000000.txt …    ROOT/ImageSets/{train,val}.txt

A label line has 15 fields, a result line a score as the 16th: type, truncation, occlusion, alpha, left, top, right,
bottom, and seven of the object in space. Pixels count from the centre of the image's first one.
"""

import functools
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from detectron2.structures import BoxMode

from ..errors import UserError
from .catalog import measure_images, raise_faults, register
from .coco import list_folder, outside_fault

KITTI_CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
CLASS_SETS = {"all": KITTI_CLASSES, "three": ("Car", "Pedestrian", "Cyclist")}
# what the benchmark neither counts as the class nor as wrong
NEIGHBOUR = {"Car": "Van", "Pedestrian": "Person_sitting"}
DONT_CARE = "DontCare"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
FIELDS = (15, 16)

# Names in the order of their labels, or KITTI's types to names.
Classes = Sequence[str] | Mapping[str, str]


class Line(NamedTuple):
    """What a line of a label or result file says of an object in the image; boxes are (left, top, right, bottom)."""

    number: int
    type: str
    truncated: float
    occluded: int
    box: tuple[float, float, float, float]
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
def parse_lines(content: bytes) -> tuple[tuple[Line, ...], tuple[tuple[int, str], ...]]:
    """The sound lines of a label or result file, and (line number, fault) of the others.

    It is kept by the file's content: what a file once said is never taken for what it says now.
    """
    lines, faults, seen = [], [], {}
    for number, text in enumerate(content.decode(errors="replace").splitlines(), start=1):
        fields = text.split()
        if not fields:
            continue
        if len(fields) not in FIELDS:
            faults.append((number, f"has {len(fields)} fields, and a KITTI label has 15: mend the line"))
            continue
        try:
            numbers = [float(field) for field in fields[1:]]
        except ValueError as error:
            faults.append((number, f"is not KITTI's: {error}; all fields but the first are numbers"))
            continue
        left, top, right, bottom = box = tuple(numbers[3:7])
        key = tuple(fields[:15])
        if not all(map(math.isfinite, numbers)):
            faults.append((number, "is not KITTI's: a field is not finite; all fields but the first are numbers"))
        elif not (left < right and top < bottom):
            faults.append(
                (
                    number,
                    f"has an inverted or empty box ({left:g}, {top:g}, {right:g}, {bottom:g}): "
                    "it is left, top, right, bottom",
                )
            )
        elif key in seen and fields[0] != DONT_CARE:
            faults.append((number, f"is the same object as line {seen[key]}: leave one out"))
        else:
            seen[key] = number
            score = numbers[14] if len(numbers) == 15 else None
            lines.append(Line(number, fields[0], numbers[0], int(numbers[1]), box, score))
    return tuple(lines), tuple(faults)


def parse_classes(text: str = "all") -> Classes:
    """`all` eight classes, the usual `three`, or types joined by `+`, with `Van:Car` for a Van that is to be a Car."""
    if text in CLASS_SETS:
        return CLASS_SETS[text]
    pairs = [part.partition(":") for part in text.split("+")]
    if not all(kitti_type and (name or not colon) for kitti_type, colon, name in pairs):
        raise UserError(f"the classes {text} cannot be told: write all, three, or types as in Car+Van:Car+Pedestrian")
    return {kitti_type: name or kitti_type for kitti_type, _, name in pairs}


def class_names(classes: Classes) -> list[str]:
    """In the order of their labels."""
    return list(dict.fromkeys(as_mapping(classes).values()))


def as_mapping(classes: Classes) -> dict[str, str]:
    return dict(classes) if isinstance(classes, Mapping) else {name: name for name in classes}


def load_kitti(root: Path, split: str, classes: Classes, mend: str = "set DETECTRON2_DATASETS") -> list[dict]:
    """Detectron2's standard dictionaries of a split, see `read_kitti`.

    Raises:
        UserError: there is no data set, or it has faults, all of which are logged.
    """
    records, faults = read_kitti(root, split, classes, mend)
    raise_faults(faults)
    return records


def read_kitti(
    root: Path, split: str, classes: Classes, mend: str = "set DETECTRON2_DATASETS", decode: bool = False
) -> tuple[list[dict], list[str]]:
    """Detectron2's standard dictionaries of what is sound in a split, and a sentence for each fault.

    Boxes are absolute (left, top, right, bottom). What the benchmark ignores becomes a crowd region: DontCare for
    every class, and a neighbour outside `classes` (Van, Person_sitting) for the class whose neighbour it is (Car,
    Pedestrian). Objects of other classes are background, as they are to the benchmark. Annotations keep the line's
    `type`, `truncated`, `occluded` and, of a result, `score`.

    Args:
        root: folder with `training` and perhaps `ImageSets`.
        split: "train" or "val"; from `ImageSets` where it names them, else a fixed 80:20 split of all images.
        classes: names in the order of their labels, or a mapping of the files' types to names.
        mend: what to do where there is no data set at `root`.
        decode: every image; else their headers and ends are looked at.

    Raises:
        UserError: no data set there, no labels, or no such split.
    """
    images = find_images(root, mend)
    folder = root / "training" / "label_2"
    labels = list_folder(folder)
    if not labels:
        raise UserError(f"{folder} has no labels, which training and evaluation need: KITTI's test set comes without")
    frames, faults = read_split(root, split, sorted(images))
    mapping, names = as_mapping(classes), class_names(classes)
    sizes = measure_images([images[frame] for frame in frames if frame in images], decode)
    records = []
    for number, (frame, place) in enumerate(frames.items()):
        if frame not in images:
            faults.append(
                f"{place} names frame {frame}, which has no image in training/image_2: add it, or take it out"
            )
            continue
        size, path = sizes[images[frame]], folder / f"{frame}.txt"
        if isinstance(size, str):
            faults.append(size)
        if path.name not in labels:
            faults.append(f"{images[frame]} has no label: {path} does not exist; add it, empty if need be")
            continue
        lines, wrong = parse_lines(path.read_bytes())
        wrong = [*wrong, *line_faults(lines, mapping, None if isinstance(size, str) else size)]
        faults += [f"{path}:{line} {fault}" for line, fault in sorted(wrong)]
        if not isinstance(size, str):
            record = dict(file_name=str(images[frame]), image_id=number, height=size[1], width=size[0])
            records.append(record | dict(annotations=make_annotations(lines, mapping, names)))
    return records, faults


def find_images(root: Path, mend: str) -> dict[str, Path]:
    """Frame names to image files."""
    folder = root / "training" / "image_2"
    images = {}
    if folder.is_dir():
        images = {path.stem: path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
    if not images:
        raise UserError(f"no KITTI data set at {root}: {folder} has no images; {mend}")
    return images


def read_split(root: Path, split: str, frames: list[str]) -> tuple[dict[str, str], list[str]]:
    """A split's frames, out of all `frames` in a fixed order, with the place that names them; and its faults."""
    path = root / "ImageSets" / f"{split}.txt"
    if not path.is_file():
        if split not in ("train", "val"):
            raise UserError(f"{path} does not exist: the splits without a file are train and val")
        shuffled = random.Random(0).sample(frames, len(frames))
        count = round(0.8 * len(frames))
        chosen = sorted(shuffled[:count] if split == "train" else shuffled[count:])
        if not chosen:
            raise UserError(f"the {split} split of {root} has no frames: name some in {path}")
        return dict.fromkeys(chosen, str(path)), []
    places, faults = {}, []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        for frame in line.split():
            if frame in places:
                faults.append(f"{path}:{number} names frame {frame} for the second time: take it out")
            places.setdefault(frame, f"{path}:{number}")
    if not places:
        raise UserError(f"the {split} split of {root} has no frames: name some in {path}")
    return places, faults


def line_faults(
    lines: Sequence[Line], mapping: Mapping[str, str], size: tuple[int, int] | None
) -> Iterator[tuple[int, str]]:
    """(line number, fault) of what is wrong only for these classes and this image's (width, height)."""
    for line in lines:
        if line.type not in mapping and line.type not in (*KITTI_CLASSES, DONT_CARE):
            known = ", ".join(dict.fromkeys([*KITTI_CLASSES, *mapping]))
            yield line.number, f"has the unknown type {line.type}: it is one of {known}"
        if size is not None:
            yield from ((line.number, fault) for fault in outside_fault(line.box, *size))


def make_annotations(lines: Sequence[Line], mapping: Mapping[str, str], names: Sequence[str]) -> list[dict]:
    """Detectron2's annotations; a DontCare region is there once for each class."""
    annotations = []
    for line in lines:
        is_object = line.type in mapping
        if is_object:
            labels = [names.index(mapping[line.type])]
        elif line.type == DONT_CARE:
            labels = range(len(names))
        else:
            labels = [names.index(mapping[t]) for t in mapping if NEIGHBOUR.get(t) == line.type]
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


def register_kitti(name: str, folder: str, split: str, classes: Classes = KITTI_CLASSES, mend: str = "") -> None:
    """Put a split into the catalog; one of the same name there is replaced.

    Args:
        name: in the catalog.
        folder: of the data set below `$DETECTRON2_DATASETS`, which is looked up when the data set is loaded.
        split, classes: as in `read_kitti`.
        mend: what else to do where there is no data set.
    """

    def read(decode: bool) -> tuple[list[dict], list[str]]:
        root = dataset_root()
        hint = f"set DETECTRON2_DATASETS, now {root}, to the folder that holds {folder}/training{mend}"
        return read_kitti(root / folder, split, classes, hint, decode)

    register(name, read, thing_classes=class_names(classes))


def register_kitti_folder(name: str, root: Path, split: str, classes: Classes = KITTI_CLASSES) -> None:
    """Put a split of the data set at `root` into the catalog."""

    def read(decode: bool) -> tuple[list[dict], list[str]]:
        return read_kitti(root, split, classes, "name the folder that holds training/image_2", decode)

    register(name, read, thing_classes=class_names(classes))


def dataset_root() -> Path:
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
