"""What all formats share: registration in Detectron2's catalogs, and checks of images and boxes."""

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from PIL import ExifTags, Image
from tqdm import tqdm

from ..errors import UserError

logger = logging.getLogger(__name__)

# the EXIF orientations that swap width and height; Detectron2's reader ignores all values but 2 to 8
SWAPPED_ORIENTATIONS = {5, 6, 7, 8}
ENDINGS = {"PNG": b"IEND\xae\x42\x60\x82", "JPEG": b"\xff\xd9"}
# where Pillow finds a PNG's orientation
EXIF_KEYS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
# pixels by which a box may exceed its image, due to rounding
MARGIN = 1.0

# Maps whether to decode every image to Detectron2's dicts of the valid images and one message per fault.
Reader = Callable[[bool], tuple[list[dict], list[str]]]


def register(name: str, read: Reader, **metadata) -> None:
    """Add a data set to the catalogs, or replace the one of the same name.

    Loading a data set with faults logs all of them and raises a `UserError`.
    """

    def load() -> list[dict]:
        records, faults = read(False)
        raise_faults(faults)
        return records

    # a config that registers its data is executed twice when the teacher's config imports it too
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(read=read, **metadata)


def raise_faults(faults: list[str]) -> None:
    """Log all faults and raise the first as a `UserError`, if there are any."""
    if len(faults) > 1:
        logger.error("\n".join(faults))
        raise UserError(f"{faults[0]} (the first of {len(faults)} faults, all listed above)")
    if faults:
        raise UserError(faults[0])


def measure_images(paths: list[Path], decode: bool) -> dict[Path, tuple[int, int] | str]:
    """Return the (width, height) of each image as Detectron2 reads it, or a message if the image cannot be read.

    Args:
        paths: image files.
        decode: decode all pixels, with a progress bar, rather than check only each file's header and end.
    """
    measure = measure_decoded if decode else measure_header
    with ThreadPoolExecutor() as pool:
        results = pool.map(measure, paths) if decode else map(measure, paths)
        return dict(zip(paths, tqdm(results, "images", len(paths), disable=not decode), strict=True))


def measure_header(path: Path) -> tuple[int, int] | str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 2**16))
            tail = file.read()
        with Image.open(path) as image:
            if ENDINGS.get(image.format, b"") in tail[-64:]:
                return oriented_size(image, tail)
    except (OSError, SyntaxError, ValueError) as error:
        return f"cannot read image {path}: {error}; copy it again"
    return f"cannot read image {path}: the file is truncated; copy it again"


def oriented_size(image: Image.Image, tail: bytes) -> tuple[int, int]:
    """Return (width, height) after the EXIF orientation is applied as in Detectron2's `_apply_exif_orientation`."""
    # PNG's own `getexif` decodes the pixels, as metadata may follow them; only few files need that
    header_only = image.format == "PNG" and not any(key in tail for key in EXIF_KEYS)
    try:
        exif = Image.Image.getexif(image) if header_only else image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation)
    except Exception:  # like the reader, ignore broken EXIF data
        orientation = None
    return image.size[::-1] if orientation in SWAPPED_ORIENTATIONS else image.size


def measure_decoded(path: Path) -> tuple[int, int] | str:
    try:
        # Pillow decodes broken pixels of a PNG as black; only the checksums reveal them
        with Image.open(path) as image:
            image.verify()
        height, width = read_image(path, "RGB").shape[:2]
        return width, height
    except (OSError, SyntaxError, ValueError) as error:
        return f"cannot read image {path}: {error}; copy it again"


def list_folder(folder: Path) -> set[str]:
    """Return the names in a folder, or none if it does not exist."""
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def outside_fault(box: tuple[float, float, float, float], width: int, height: int) -> Iterator[str]:
    """Yield a fault if a (left, top, right, bottom) box exceeds the image."""
    left, top, right, bottom = box
    if min(left, top) < -MARGIN or right > width + MARGIN or bottom > height + MARGIN:
        yield (
            f"box ({left:g}, {top:g}, {right:g}, {bottom:g}) exceeds the {width}x{height} image; "
            "clip it, or check that the label belongs to this image"
        )
