"""Detectron2's mapper with an answer for images that cannot be decoded, and with the regions to be ignored."""

from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from PIL import Image

from ..errors import UserError


class DetectionMapper(DatasetMapper):
    """Detectron2's `DatasetMapper`, arguments and all, which names the image that it cannot read.

    Crowd annotations become `ignored`, instances of boxes and classes like `instances`, which has none of them.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        path = dataset_dict["file_name"]
        try:
            # Detectron2's reader takes broken pixels for black ones; a PNG's checksums tell
            with Image.open(path) as image:
                image.verify()
            return super().__call__(dataset_dict)
        except (OSError, SyntaxError) as error:
            raise UserError(f"image {path} cannot be read ({error}): copy it again") from error
        except utils.SizeMismatchError as error:
            raise UserError(f"image {path} is not of the size that its annotations say: {error}") from error

    def _transform_annotations(self, dataset_dict: dict, transforms, image_shape: tuple[int, int]) -> None:
        crowds = [a for a in dataset_dict["annotations"] if a.get("iscrowd", 0)]
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        boxes = [utils.transform_instance_annotations(dict(a), transforms, image_shape) for a in crowds]
        dataset_dict["ignored"] = utils.filter_empty_instances(utils.annotations_to_instances(boxes, image_shape))
