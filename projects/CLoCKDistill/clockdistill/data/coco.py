"""Datasets in COCO's JSON format (https://cocodataset.org/#format-data)."""

import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from ..errors import MissingDataset, UserError
from .catalog import Fault, Reading, Repair, fit_box, list_folder, measure_images, register

SECTIONS = ("images", "annotations", "categories")
IMAGE_FIELDS = dict(id=(int, str), file_name=(str,), width=(int, float), height=(int, float))
ANNOTATION_FIELDS = dict(id=(int, str), image_id=(int, str), category_id=(int,), bbox=(list,))


def register_coco(name: str, json_file: str, image_root: str) -> None:
    """Add a dataset in COCO's format to the catalogs, as Detectron2's `register_coco_instances` does.

    Categories become labels from 0 in the order of their ids. As in Detectron2, they are known once it is loaded.
    """

    def read(decode: bool) -> Reading:
        data, metadata = read_coco(Path(json_file), Path(image_root), decode)
        MetadataCatalog.get(name).set(**metadata)
        return data

    register(name, read, image_root=image_root, evaluator_type="coco")


def read_coco(json_file: Path, image_root: Path, decode: bool = False) -> tuple[Reading, dict]:
    """Return the dataset, repaired, and Detectron2's metadata.

    Boxes are absolute (left, top, width, height), as in the file. Segmentations and keypoints are left out.

    Annotations need neither `area` nor `iscrowd`. If one lacks them or the data were repaired, the metadata have no
    `json_file`, so that `COCOEvaluator` writes its own file, with the areas of the boxes.

    Args:
        json_file: file with the annotations.
        image_root: folder with the images.
        decode: decode every image rather than check only its header and end.

    Raises:
        MissingDataset: the file or all folders of its images do not exist.
        UserError: the file is not in COCO's format, so that nothing in it can be checked.
    """
    content = read_json(json_file)
    categories = {category["id"]: category["name"] for category in sorted(content["categories"], key=lambda c: c["id"])}
    faults, records = [], {}
    for image in content["images"]:
        fault = field_fault(image, IMAGE_FIELDS)
        if fault:
            faults.append(Fault(f"{json_file}: image {image.get('id', image)}: {fault}"))
        elif image["id"] in records:
            faults.append(Fault(f"{json_file}: image {image['id']}: duplicate id; give each image its own"))
        else:
            path = image_root / image["file_name"]
            sizes = dict(height=image["height"], width=image["width"])
            records[image["id"]] = dict(file_name=str(path), image_id=image["id"], **sizes, annotations=[])
    annotated_sizes = {key: (record["width"], record["height"]) for key, record in records.items()}
    faults += image_faults(json_file, records.values(), decode)
    unreadable = {fault.bad_image for fault in faults if fault.bad_image}

    ids, objects = set(), set()
    labels = {category: label for label, category in enumerate(categories)}
    for annotation in content["annotations"]:
        where = f"{json_file}: annotation {annotation.get('id')}"
        invalid = list(annotation_faults(annotation, records, categories))
        if not invalid and annotation["id"] in ids:
            invalid.append(("duplicate id; give each annotation its own", None))
        box = annotation.get("bbox")
        if not invalid:
            ids.add(annotation["id"])
            record = records[annotation["image_id"]]
            key = annotation["image_id"], annotation["category_id"], *box
            if key in objects:
                text = f"duplicate of another annotation of image {key[0]}; remove one of them"
                invalid.append((text, Repair.DROP_REPEATED))
                box = None
            else:
                objects.add(key)
                left, top, width, height = box
                edges = left, top, left + width, top + height
                fitted, text, repair = fit_box(edges, record["width"], record["height"])
                if repair:
                    size = annotated_sizes[annotation["image_id"]]
                    if fit_box(edges, *size)[2] is None:
                        text = f"{text.partition(';')[0]}, as it is for one of {size[0]}x{size[1]}; scale the boxes too"
                        repair = None
                    invalid.append((text, repair))
                    box = fitted and [*fitted[:2], fitted[2] - fitted[0], fitted[3] - fitted[1]]
        faults += [Fault(f"{where}: {text}", repair) for text, repair in invalid]
        if box is not None and all(repair is Repair.CLIP for _, repair in invalid):
            record["annotations"].append(
                dict(
                    bbox=box,
                    bbox_mode=BoxMode.XYWH_ABS,
                    category_id=labels[annotation["category_id"]],
                    iscrowd=int(annotation.get("iscrowd") or 0),
                )
            )
    metadata = dict(
        thing_classes=list(categories.values()),
        thing_dataset_id_to_contiguous_id={key: label for label, key in enumerate(categories)},
    )
    # pycocotools reads both without a default
    if not faults and all(None not in (a.get("area"), a.get("iscrowd")) for a in content["annotations"]):
        metadata["json_file"] = str(json_file)
    readable = [record for record in records.values() if record["file_name"] not in unreadable]
    return Reading(readable, faults), metadata


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingDataset(f"{path} does not exist; name a file with annotations in COCO's format") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; export it again") from error
    for section in SECTIONS:
        if not (isinstance(content, dict) and isinstance(content.get(section), list)):
            raise UserError(f"{path}: no list `{section}`; COCO's format needs {', '.join(SECTIONS)}")
    if not all(isinstance(entry, dict) for section in SECTIONS for entry in content[section]):
        raise UserError(f"{path}: not in COCO's format; {', '.join(SECTIONS)} must be lists of objects")
    ids = [category.get("id") for category in content["categories"]]
    if not all(isinstance(i, int) for i in ids) or len(set(ids)) < len(ids) or not ids:
        raise UserError(f"{path}: missing or duplicate category ids; give each category its own integer `id`")
    if not all(category.get("name") for category in content["categories"]):
        raise UserError(f"{path}: a category has no name; add its `name`")
    return content


def image_faults(json_file: Path, records: Collection[dict], decode: bool) -> Iterator[Fault]:
    """Yield a fault for each image that is missing, unreadable or of another size, which is corrected in its record.

    Raises:
        MissingDataset: none of the images' folders exists.
    """
    paths = {Path(record["file_name"]): record for record in records}
    folders = {folder: list_folder(folder) for folder in {path.parent for path in paths}}
    present = [path for path in paths if path.name in folders[path.parent]]
    if folders and not any(folder.is_dir() for folder in folders):
        raise MissingDataset(
            f"{json_file}: the images' folder {min(folders)} does not exist; name it, as in coco:FILE.json:FOLDER"
        )
    for path in sorted(paths.keys() - set(present)):
        yield Fault(f"{json_file}: image {path} does not exist; add it, or remove it from the file")
    for path, size in measure_images(present, decode).items():
        record = paths[path]
        if isinstance(size, str):
            yield Fault(size, bad_image=str(path))
        elif size != (record["width"], record["height"]):
            where = f"{json_file}: image {path} is {size[0]}x{size[1]}, not {record['width']}x{record['height']}"
            if has_size_before_rotation(path, record):
                yield Fault(f"{where}, because of its EXIF orientation; save it without one, as it was annotated")
            elif is_scaled(size, (record["width"], record["height"])):
                yield Fault(f"{where}; scale its boxes and correct its width and height")
            else:
                yield Fault(f"{where}; correct its width and height", Repair.RESIZE)
            record["width"], record["height"] = size


def is_scaled(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two different sizes have the same aspect ratio, to within rounding, as after resizing an image."""
    width, height = other
    return abs(size[0] * height - size[1] * width) <= max(*size, *other)


def has_size_before_rotation(path: Path, record: dict) -> bool:
    """Return whether a record has the size of an image whose EXIF orientation is ignored."""
    with Image.open(path) as image:
        return image.size == (record["width"], record["height"])


def field_fault(entry: dict, fields: dict[str, tuple[type, ...]]) -> str | None:
    for key, kinds in fields.items():
        if key not in entry:
            return f"no {key}; add it"
        if not isinstance(entry[key], kinds):
            return f"invalid {key} {entry[key]!r}; expected {' or '.join(kind.__name__ for kind in kinds)}"
    return None


def annotation_faults(annotation: dict, records: dict, categories: dict) -> Iterator[tuple[str, Repair | None]]:
    """Yield the faults of an annotation on its own, each with its repair."""
    fault = field_fault(annotation, ANNOTATION_FIELDS)
    if fault:
        yield fault, None
        return
    if annotation["category_id"] not in categories:
        yield f"unknown category {annotation['category_id']}; use one of {', '.join(map(str, categories))}", None
    if annotation.get("iscrowd") not in (None, 0, 1):
        yield f"iscrowd {annotation['iscrowd']!r}; write 0 or 1", None
    box = annotation["bbox"]
    if annotation["image_id"] not in records:
        yield f"unknown image {annotation['image_id']}; add it to `images`", None
    if not (len(box) == 4 and all(isinstance(x, int | float) for x in box)):
        yield f"invalid box {box}; write four numbers: left, top, width, height", None
    elif not all(map(math.isfinite, box)):
        yield f"box {box} is not finite; write four numbers: left, top, width, height", None
    elif min(box[2:]) <= 0:
        is_empty = min(box[2:]) == 0
        text = f"inverted or empty box ({', '.join(f'{x:g}' for x in box)}); the order is left, top, width, height"
        yield text, Repair.DROP_EMPTY if is_empty else None
