"""Data sets in COCO's JSON format (https://cocodataset.org/#format-data)."""

import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ..errors import UserError
from .catalog import list_folder, measure_images, outside_fault, register

SECTIONS = ("images", "annotations", "categories")
IMAGE_FIELDS = dict(id=(int, str), file_name=(str,), width=(int, float), height=(int, float))
ANNOTATION_FIELDS = dict(id=(int, str), image_id=(int, str), category_id=(int,), bbox=(list,))


def register_coco(name: str, json_file: str, image_root: str) -> None:
    """Add a data set in COCO's format to the catalogs, as Detectron2's `register_coco_instances` does.

    Categories become labels from 0 in the order of their ids. As in Detectron2, they are known once it is loaded.
    """

    def read(decode: bool) -> tuple[list[dict], list[str]]:
        records, faults, metadata = read_coco(Path(json_file), Path(image_root), decode)
        MetadataCatalog.get(name).set(**metadata)
        return records, faults

    register(name, read, image_root=image_root, evaluator_type="coco")


def read_coco(json_file: Path, image_root: Path, decode: bool = False) -> tuple[list[dict], list[str], dict]:
    """Return Detectron2's standard dicts with the valid annotations, one message per fault, and Detectron2's metadata.

    Boxes are absolute (left, top, width, height), as in the file. Segmentations and keypoints are left out.

    Annotations need neither `area` nor `iscrowd`. Unless all have both, the metadata have no `json_file`, so that
    `COCOEvaluator` writes its own file, with the areas of the boxes.

    Args:
        json_file: file with the annotations.
        image_root: folder with the images.
        decode: decode every image and compare its size with the file's, rather than check only that it exists.

    Raises:
        UserError: the file is not in COCO's format, so that nothing in it can be checked.
    """
    content = read_json(json_file)
    categories = {category["id"]: category["name"] for category in sorted(content["categories"], key=lambda c: c["id"])}
    faults, records = [], {}
    for image in content["images"]:
        fault = field_fault(image, IMAGE_FIELDS)
        if fault:
            faults.append(f"{json_file}: image {image.get('id', image)}: {fault}")
        elif image["id"] in records:
            faults.append(f"{json_file}: image {image['id']}: duplicate id; give each image its own")
        else:
            path = image_root / image["file_name"]
            sizes = dict(height=image["height"], width=image["width"])
            records[image["id"]] = dict(file_name=str(path), image_id=image["id"], **sizes, annotations=[])
    faults += image_faults(json_file, records.values(), decode)

    ids, objects = set(), set()
    for annotation in content["annotations"]:
        where = f"{json_file}: annotation {annotation.get('id')}"
        invalid = list(annotation_faults(annotation, records, categories))
        if not invalid:
            key = annotation["image_id"], annotation["category_id"], *annotation["bbox"]
            if annotation["id"] in ids:
                invalid.append("duplicate id; give each annotation its own")
            elif key in objects:
                invalid.append(f"duplicate of another annotation of image {key[0]}; remove one of them")
            ids.add(annotation["id"])
            objects.add(key)
        faults += [f"{where}: {fault}" for fault in invalid]
        if not invalid:
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
        raise UserError(f"{path} does not exist; name a file with annotations in COCO's format") from error
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


def image_faults(json_file: Path, records: Collection[dict], decode: bool) -> Iterator[str]:
    """Yield a fault for each missing image and, if `decode`, for each that is unreadable or has another size."""
    paths = {Path(record["file_name"]): record for record in records}
    folders = {folder: list_folder(folder) for folder in {path.parent for path in paths}}
    present = [path for path in paths if path.name in folders[path.parent]]
    for path in sorted(paths.keys() - set(present)):
        yield f"{json_file}: image {path} does not exist; add it, or remove it from the file"
    if decode:
        for path, size in measure_images(present, decode).items():
            record = paths[path]
            if isinstance(size, str):
                yield size
            elif size != (record["width"], record["height"]):
                yield (
                    f"{json_file}: image {path} is {size[0]}x{size[1]}, not {record['width']}x{record['height']}; "
                    "correct its width and height"
                )


def field_fault(entry: dict, fields: dict[str, tuple[type, ...]]) -> str | None:
    for key, kinds in fields.items():
        if key not in entry:
            return f"no {key}; add it"
        if not isinstance(entry[key], kinds):
            return f"invalid {key} {entry[key]!r}; expected {' or '.join(kind.__name__ for kind in kinds)}"
    return None


def annotation_faults(annotation: dict, records: dict, categories: dict) -> Iterator[str]:
    fault = field_fault(annotation, ANNOTATION_FIELDS)
    if fault:
        yield fault
        return
    if annotation["category_id"] not in categories:
        yield f"unknown category {annotation['category_id']}; use one of {', '.join(map(str, categories))}"
    box, record = annotation["bbox"], records.get(annotation["image_id"])
    if record is None:
        yield f"unknown image {annotation['image_id']}; add it to `images`"
    if not (len(box) == 4 and all(isinstance(x, int | float) for x in box)):
        yield f"invalid box {box}; write four numbers: left, top, width, height"
    elif not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
        yield f"inverted or empty box ({', '.join(f'{x:g}' for x in box)}); the order is left, top, width, height"
    elif record is not None:
        left, top, width, height = box
        yield from outside_fault((left, top, left + width, top + height), record["width"], record["height"])
