"""Data sets in Detectron2's catalog: by name, or registered when a name that says where they are is first asked for."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tqdm import tqdm

from ..errors import UserError

logger = logging.getLogger(__name__)

ENDINGS = {"PNG": b"IEND\xae\x42\x60\x82", "JPEG": b"\xff\xd9"}
EXIF_ORIENTATION = 0x0112

# From whether to decode every image to Detectron2's dictionaries of what is sound, and a sentence for each fault.
Reader = Callable[[bool], tuple[list[dict], list[str]]]


def register(name: str, read: Reader, **metadata) -> None:
    """Put a data set into the catalog; one of the same name there is replaced.

    Loading it raises a `UserError` where it has faults, after all of them were logged.
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
    """Log all faults and raise the first as a `UserError`; nothing where there are none."""
    if len(faults) > 1:
        logger.error("\n".join(faults))
        raise UserError(f"{faults[0]} (the first of {len(faults)} faults, all of which are listed above)")
    if faults:
        raise UserError(faults[0])


def measure_images(paths: list[Path], decode: bool) -> dict[Path, tuple[int, int] | str]:
    """(width, height) of images as Detectron2 reads them, or the fault of one that cannot be read.

    Args:
        decode: all pixels, with progress; else a look at header and end, which is what a broken copy lacks.
    """
    measure = measure_decoded if decode else measure_header
    with ThreadPoolExecutor() as pool:
        results = pool.map(measure, paths) if decode else map(measure, paths)
        return dict(zip(paths, tqdm(results, "images", len(paths), disable=not decode), strict=True))


def measure_header(path: Path) -> tuple[int, int] | str:
    try:
        with path.open("rb") as file, Image.open(file) as image:
            size, ending = oriented_size(image), ENDINGS.get(image.format)
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 64))
            if ending is None or ending in file.read():
                return size
    except (OSError, SyntaxError, ValueError):
        return f"image {path} cannot be read: copy it again"
    return f"image {path} cannot be read to its end: copy it again"


def measure_decoded(path: Path) -> tuple[int, int] | str:
    try:
        # Pillow takes broken pixels of a PNG for black ones; its checksums tell
        with Image.open(path) as image:
            image.verify()
        with Image.open(path) as image:
            image.load()
            return oriented_size(image)
    except (OSError, SyntaxError, ValueError) as error:
        return f"image {path} cannot be read ({error}): copy it again"


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) once the image is turned as a camera's EXIF data say."""
    # Pillow would read a PNG to its end to look for them
    is_turned = image.format == "JPEG" and image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    return image.size[::-1] if is_turned else image.size
