"""KITTI's 2D object benchmark (Geiger et al., CVPR 2012) in its own layout, for Detectron2's catalog.

    ROOT/training/image_2/000000.png …    ROOT/training/label_2/000000.txt …    ROOT/ImageSets/{train,val}.txt

A label line has 15 fields, a result line a score as the 16th: type, truncation, occlusion, alpha, left, top, right,
bottom, and seven of the object in space. Pixels count from the centre of the image's first one.
"""

import math
import os
import random
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image, UnidentifiedImageError

from ..errors import UserError

KITTI_CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
DONT_CARE = "DontCare"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
ENDINGS = {"PNG": b"IEND\xae\x42\x60\x82", "JPEG": b"\xff\xd9"}
FIELDS = (15, 16)


def load_kitti(root: Path, split: str, classes: Sequence[str], mend: str = "set DETECTRON2_DATASETS") -> list[dict]:
    """Detectron2's standard dictionaries of a split.

    Boxes are absolute (left, top, right, bottom). DontCare regions, and objects of KITTI's classes outside `classes`,
    become one crowd region a class: training leaves them out, and COCO's evaluation does not count detections on them
    as wrong. For KITTI's own, annotations keep the line's `type`, `truncated` and `occluded`.

    Args:
        root: folder with `training` and perhaps `ImageSets`.
        split: "train" or "val"; from `ImageSets` where it names them, else a fixed 80:20 split of all images.
        classes: names, in the order of their labels.
        mend: what to do where there is no data set at `root`.

    Raises:
        UserError: no data set there, a missing or broken image, a missing label file, or a line that is not KITTI's.
    """
    images = find_images(root, mend)
    frames = read_split(root, split, sorted(images))
    if not frames:
        raise UserError(f"the {split} split of {root} has no frames: name some in {root}/ImageSets/{split}.txt")
    dataset = []
    for number, frame in enumerate(frames):
        if frame not in images:
            raise UserError(f"{root}/ImageSets/{split}.txt names frame {frame}, which has no image in training/image_2")
        label_file = root / "training" / "label_2" / f"{frame}.txt"
        if not label_file.is_file():
            raise UserError(f"{images[frame]} has no label: {label_file} does not exist; add it, empty if need be")
        width, height = read_image_size(images[frame])
        record = dict(file_name=str(images[frame]), image_id=number, height=height, width=width)
        dataset.append(record | dict(annotations=read_labels(label_file, classes)))
    return dataset


def find_images(root: Path, mend: str) -> dict[str, Path]:
    """Frame names to image files."""
    folder = root / "training" / "image_2"
    images = {}
    if folder.is_dir():
        images = {path.stem: path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
    if not images:
        raise UserError(f"no KITTI data set at {root}: {folder} has no images; {mend}")
    return images


def read_split(root: Path, split: str, frames: list[str]) -> list[str]:
    """Names of a split's frames, out of all `frames` in a fixed order."""
    path = root / "ImageSets" / f"{split}.txt"
    if path.is_file():
        return path.read_text(encoding="utf-8").split()
    if split not in ("train", "val"):
        raise UserError(f"{path} does not exist: the splits without a file are train and val")
    shuffled = random.Random(0).sample(frames, len(frames))
    count = round(0.8 * len(frames))
    return sorted(shuffled[:count] if split == "train" else shuffled[count:])


def read_image_size(path: Path) -> tuple[int, int]:
    """(width, height) from an image's header, after a look at its end: what a broken copy lacks."""
    try:
        with Image.open(path) as image:
            size, ending = image.size, ENDINGS.get(image.format)
        with path.open("rb") as file:
            file.seek(-min(64, path.stat().st_size), 2)
            complete = ending is None or ending in file.read()
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"image {path} cannot be read: copy it again") from error
    if not complete:
        raise UserError(f"image {path} cannot be read to its end: copy it again")
    return size


def read_labels(path: Path, classes: Sequence[str]) -> list[dict]:
    """Detectron2's annotations of a label or result file."""
    annotations = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) not in FIELDS:
            raise UserError(f"{path}:{number} has {len(fields)} fields, and a KITTI label has 15: mend the line")
        name = fields[0]
        if name != DONT_CARE and name not in KITTI_CLASSES and name not in classes:
            raise UserError(f"{path}:{number} has the unknown type {name}: it is one of {', '.join(KITTI_CLASSES)}")
        try:
            numbers = [float(field) for field in fields[1:]]
            if not all(map(math.isfinite, numbers)):
                raise ValueError("a field is not finite")
            truncated, occluded, _, *box = numbers[:7]
        except ValueError as error:
            raise UserError(f"{path}:{number} is not KITTI's: {error}; all fields but the first are numbers") from error
        left, top, right, bottom = box
        if not (left < right and top < bottom):
            raise UserError(
                f"{path}:{number} has an inverted or empty box ({left:g}, {top:g}, {right:g}, {bottom:g}): "
                "it is left, top, right, bottom"
            )
        common = dict(type=name, bbox=box, bbox_mode=BoxMode.XYXY_ABS, truncated=truncated, occluded=int(occluded))
        if name in classes:
            annotations.append(dict(common, category_id=classes.index(name), iscrowd=0))
        else:
            annotations.extend(dict(common, category_id=label, iscrowd=1) for label in range(len(classes)))
    return annotations


def register_kitti(name: str, folder: str, split: str, classes: Sequence[str] = KITTI_CLASSES, mend: str = "") -> None:
    """Put a split into the catalog; one of the same name there is replaced.

    Args:
        name: in the catalog.
        folder: of the data set below `$DETECTRON2_DATASETS`, which is looked up when the data set is loaded.
        split, classes: as in `load_kitti`.
        mend: what else to do where there is no data set.
    """

    def load() -> list[dict]:
        root = dataset_root()
        hint = f"set DETECTRON2_DATASETS, now {root}, to the folder that holds {folder}/training{mend}"
        return load_kitti(root / folder, split, list(classes), hint)

    # a config that registers its data is executed twice when the teacher's config imports it too
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(thing_classes=list(classes))


def dataset_root() -> Path:
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
