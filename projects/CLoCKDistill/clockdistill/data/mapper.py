"""Detectron2's mapper with an answer for images that cannot be decoded."""

from detectron2.data import DatasetMapper
from PIL import Image

from ..errors import UserError


class DetectionMapper(DatasetMapper):
    """Detectron2's `DatasetMapper`, arguments and all, which names the image that it cannot read."""

    def __call__(self, dataset_dict: dict) -> dict:
        path = dataset_dict["file_name"]
        try:
            # Detectron2's reader takes broken pixels for black ones; a PNG's checksums tell
            with Image.open(path) as image:
                image.verify()
            return super().__call__(dataset_dict)
        except (OSError, SyntaxError) as error:
            raise UserError(f"image {path} cannot be read ({error}): copy it again") from error
