"""What all formats share: registration in Detectron2's catalogs, and checks of images and boxes."""

import contextlib
import contextvars
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

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

# share of a dataset's images that may be left out because they cannot be read
MAX_BAD_IMAGES = 0.01


class Repair(Enum):
    """What is done about a fault that does not stop a training; the value describes it."""

    CLIP = "box(es) clipped to the image"
    DROP_OUTSIDE = "box(es) outside the image dropped"
    DROP_EMPTY = "empty box(es) dropped"
    DROP_REPEATED = "repeated box(es) dropped"
    RESIZE = "image size(s) taken from the file"


class Fault(NamedTuple):
    """Something wrong with a dataset.

    Attributes:
        message: place, fault and how to fix it.
        repair: what the reader does about it; None if nothing can be done.
        bad_image: path of an image that cannot be read.
    """

    message: str
    repair: Repair | None = None
    bad_image: str | None = None


class Reading(NamedTuple):
    """A dataset as it was read: Detectron2's dicts of the valid images, repaired, and all faults."""

    records: list[dict]
    faults: list[Fault]

    @property
    def repairs(self) -> dict[str, int]:
        """Number of repairs by description."""
        return Counter(fault.repair.value for fault in self.faults if fault.repair)


@dataclass(frozen=True)
class ReadingPolicy:
    """What happens to datasets with faults.

    Attributes:
        strict: refuse faults that could be repaired.
        skip_bad_images: leave out images that cannot be read, if they are at most 1 %.
    """

    strict: bool = False
    skip_bad_images: bool = False


DEFAULT_POLICY = ReadingPolicy()
_policy = contextvars.ContextVar("reading policy", default=DEFAULT_POLICY)


def reading_policy() -> ReadingPolicy:
    """Return the policy by which datasets of the catalog are read now."""
    return _policy.get()


@contextlib.contextmanager
def reading(policy: ReadingPolicy) -> Iterator[None]:
    """Read datasets of the catalog by a policy."""
    token = _policy.set(policy)
    try:
        yield
    finally:
        _policy.reset(token)


# Reads a dataset, given whether to decode every image.
Reader = Callable[[bool], Reading]


def register(name: str, read: Reader, **metadata) -> None:
    """Add a dataset to the catalogs, or replace the one of the same name.

    Loading it logs the repairs, and raises a `UserError` if there are faults that the policy does not allow.
    """

    def load() -> list[dict]:
        return accept(name, read(False))

    # a config that registers its data is executed twice when the teacher's config imports it too
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(read=read, **metadata)


def accept(name: str, data: Reading) -> list[dict]:
    """Return the records of a dataset, or raise a `UserError` if the policy does not allow its faults."""
    policy = reading_policy()
    bad_images = [fault for fault in data.faults if fault.bad_image]
    if policy.skip_bad_images and bad_images:
        total = len(data.records) + len(bad_images)
        if len(bad_images) > MAX_BAD_IMAGES * total:
            raise UserError(
                f"{len(bad_images)} of {total} images of {name} cannot be read, more than {MAX_BAD_IMAGES:.0%}, "
                f"such as {bad_images[0].bad_image}: copy them again (python -m clockdistill.data.check lists them)"
            )
        paths = ", ".join(fault.bad_image for fault in bad_images)
        logger.warning(f"{name}: left out {len(bad_images)} of {total} images that cannot be read: {paths}")
    raise_faults(
        [
            fault.message + (", or set train.skip_bad_images=True" if fault.bad_image else "")
            for fault in data.faults
            if not (fault.bad_image and policy.skip_bad_images) and (policy.strict or fault.repair is None)
        ]
    )
    if data.repairs:
        counts = ", ".join(f"{count} {what}" for what, count in data.repairs.items())
        logger.warning(f"{name}: repaired {counts}; python -m clockdistill.data.check lists them")
    return data.records


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
        results = pool.map(measure, paths, chunksize=64)
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
        # cameras add data of their own after the image
        return measure_decoded(path)
    except (OSError, SyntaxError, ValueError) as error:
        return f"cannot read image {path}: {error}; copy it again"


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


Box = tuple[float, float, float, float]  # left, top, right, bottom


def fit_box(box: Box, width: int, height: int) -> tuple[Box | None, str, Repair | None]:
    """Fit a box into its image.

    Returns:
        The box, clipped if it exceeds the image by more than rounding does, or None if nothing is left of it; the
        fault; and the repair, None if there is no fault.
    """
    left, top, right, bottom = box
    if min(left, top) >= -MARGIN and right <= width + MARGIN and bottom <= height + MARGIN:
        return box, "", None
    fault = (
        f"box ({left:g}, {top:g}, {right:g}, {bottom:g}) exceeds the {width}x{height} image; "
        "clip it, or check that the label belongs to this image"
    )
    clipped = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if clipped[0] < clipped[2] and clipped[1] < clipped[3]:
        return clipped, fault, Repair.CLIP
    return None, fault, Repair.DROP_OUTSIDE
