"""Data sets in COCO's JSON format (https://cocodataset.org/#format-data), for Detectron2's catalog."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ..errors import UserError
from .catalog import measure_images, register

SECTIONS = ("images", "annotations", "categories")
IMAGE_FIELDS = dict(id=(int, str), file_name=str, width=(int, float), height=(int, float))
ANNOTATION_FIELDS = dict(id=(int, str), image_id=(int, str), category_id=int, bbox=list)
# what rounding may put beyond an image's edge, in pixels
MARGIN = 1.0


def register_coco(name: str, json_file: str, image_root: str) -> None:
    """Put a data set in COCO's format into the catalog, as Detectron2's `register_coco_instances` does.

    Categories become labels from 0 in the order of their ids. They are known, as in Detectron2, once it is loaded.
    """

    def read(decode: bool) -> tuple[list[dict], list[str]]:
        records, faults, metadata = read_coco(Path(json_file), Path(image_root), decode)
        MetadataCatalog.get(name).set(**metadata)
        return records, faults

    register(name, read, image_root=image_root, evaluator_type="coco")


def read_coco(json_file: Path, image_root: Path, decode: bool = False) -> tuple[list[dict], list[str], dict]:
    """Detectron2's standard dictionaries of what is sound, a sentence for each fault, and Detectron2's metadata.

    Boxes are absolute (left, top, width, height), as in the file. Segmentations and keypoints are left out.

    An annotation needs neither `area` nor `iscrowd`. Without them in all annotations the metadata have no `json_file`,
    and COCO's evaluation makes the boxes' areas its own.

    Args:
        decode: every image, whose size must then be the file's; else they are looked for in their folders' listings.

    Raises:
        UserError: the file is not of COCO's format, so that nothing else can be told of it.
    """
    content = read_json(json_file)
    categories = {category["id"]: category["name"] for category in sorted(content["categories"], key=lambda c: c["id"])}
    faults, records = [], {}
    for image in content["images"]:
        fault = field_fault(image, IMAGE_FIELDS)
        if fault:
            faults.append(f"{json_file}: image {image.get('id', image)} {fault}")
        elif image["id"] in records:
            faults.append(f"{json_file}: image {image['id']} is there twice: leave one out")
        else:
            path = image_root / image["file_name"]
            sizes = dict(height=image["height"], width=image["width"])
            records[image["id"]] = dict(file_name=str(path), image_id=image["id"], **sizes, annotations=[])
    faults += image_faults(json_file, records.values(), decode)

    ids, objects = set(), set()
    for annotation in content["annotations"]:
        where = f"{json_file}: annotation {annotation.get('id')}"
        faults_here = list(annotation_faults(annotation, records, categories))
        if not faults_here:
            key = annotation["image_id"], annotation["category_id"], *annotation["bbox"]
            if annotation["id"] in ids:
                faults_here.append("has the id of another one: number them anew")
            elif key in objects:
                faults_here.append(f"is the same object as another one of image {key[0]}: leave one out")
            ids.add(annotation["id"])
            objects.add(key)
        faults += [f"{where} {fault}" for fault in faults_here]
        if not faults_here:
            records[annotation["image_id"]]["annotations"].append(
                dict(
                    bbox=annotation["bbox"],
                    bbox_mode=BoxMode.XYWH_ABS,
                    category_id=list(categories).index(annotation["category_id"]),
                    iscrowd=int(annotation.get("iscrowd", 0)),
                )
            )
    metadata = dict(
        thing_classes=list(categories.values()),
        thing_dataset_id_to_contiguous_id={key: label for label, key in enumerate(categories)},
    )
    if all("area" in annotation and "iscrowd" in annotation for annotation in content["annotations"]):
        metadata["json_file"] = str(json_file)
    return list(records.values()), faults, metadata


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: name a file with COCO's annotations") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): write it anew") from error
    for section in SECTIONS:
        if not (isinstance(content, dict) and isinstance(content.get(section), list)):
            raise UserError(f"{path} has no list of {section}, and COCO's format has {', '.join(SECTIONS)}: add it")
    if not all(isinstance(entry, dict) for section in SECTIONS for entry in content[section]):
        raise UserError(f"{path} is not in COCO's format: images, annotations and categories are lists of objects")
    ids = [category.get("id") for category in content["categories"]]
    if not all(isinstance(i, int) for i in ids) or len(set(ids)) < len(ids) or not ids:
        raise UserError(f"{path} does not name its categories: each has an `id` of its own and a `name`")
    if not all(category.get("name") for category in content["categories"]):
        raise UserError(f"{path} has a category without a name: add its `name`")
    return content


def image_faults(json_file: Path, records, decode: bool) -> Iterator[str]:
    """Images that are missing and, where they are decoded, broken or of another size than the file says."""
    paths = {Path(record["file_name"]): record for record in records}
    folders = {folder: list_folder(folder) for folder in {path.parent for path in paths}}
    present = [path for path in paths if path.name in folders[path.parent]]
    for path in paths.keys() - set(present):
        yield f"{json_file}: image {path} does not exist: put it there, or leave it out"
    if decode:
        for path, size in measure_images(present, decode).items():
            record = paths[path]
            if isinstance(size, str):
                yield size
            elif size != (record["width"], record["height"]):
                yield (
                    f"{json_file}: image {path} is said to be {record['width']}x{record['height']} and is "
                    f"{size[0]}x{size[1]}: correct its width and height"
                )


def field_fault(entry: dict, fields: dict[str, type | tuple[type, ...]]) -> str | None:
    for key, kind in fields.items():
        if key not in entry:
            return f"has no {key}: add it"
        if not isinstance(entry[key], kind):
            return f"has the {key} {entry[key]!r}: write it as COCO's format has it"
    return None


def list_folder(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def annotation_faults(annotation: dict, records: dict, categories: dict) -> Iterator[str]:
    fault = field_fault(annotation, ANNOTATION_FIELDS)
    if fault:
        yield fault
        return
    if annotation["category_id"] not in categories:
        yield f"is of the unknown category {annotation['category_id']}: it is one of {', '.join(map(str, categories))}"
    box, record = annotation["bbox"], records.get(annotation["image_id"])
    if record is None:
        yield f"is of the unknown image {annotation['image_id']}: add it to `images`"
    if not (len(box) == 4 and all(isinstance(x, int | float) for x in box)):
        yield f"has the box {box}, which is not four numbers: left, top, width, height"
    elif not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
        yield f"has an inverted or empty box ({', '.join(f'{x:g}' for x in box)}): it is left, top, width, height"
    elif record is not None:
        left, top, width, height = box
        yield from outside_fault((left, top, left + width, top + height), record["width"], record["height"])


def outside_fault(box: tuple[float, float, float, float], width: int, height: int) -> Iterator[str]:
    left, top, right, bottom = box
    if min(left, top) < -MARGIN or right > width + MARGIN or bottom > height + MARGIN:
        yield (
            f"has a box outside the image: ({left:g}, {top:g}) to ({right:g}, {bottom:g}) in {width}x{height}; "
            "clip it, or see whether the label belongs to this image"
        )
