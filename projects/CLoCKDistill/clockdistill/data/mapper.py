"""Detectron2's mapper with error messages for unreadable images and with regions to ignore."""

from typing import Any

from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from PIL import Image

from ..checks import Rule, checked
from ..errors import UnreadableImage, UserError


class DetectionMapper(DatasetMapper):
    """Detectron2's `DatasetMapper`, with the same arguments but only for RGB, that keeps the crowd annotations.

    `instances` holds the objects and `ignored`, also `Instances` with boxes and classes, the crowd regions.

    Raises:
        UnreadableImage: the image cannot be read.
        UserError: it does not have the annotated size.
    """

    @checked(image_format=Rule(lambda name: name == "RGB", "RGB, which all models and tools here expect"))
    def __init__(self, is_train: bool, *, image_format: str, **kwargs: Any):
        super().__init__(is_train, image_format=image_format, **kwargs)

    def __call__(self, dataset_dict: dict) -> dict:
        path = dataset_dict["file_name"]
        try:
            # Pillow decodes broken pixels of a PNG as black; only the checksums reveal them
            with Image.open(path) as image:
                image.verify()
            return super().__call__(dataset_dict)
        except (OSError, SyntaxError) as error:
            raise UnreadableImage(f"cannot read image {path}: {error}; copy it again") from error
        except utils.SizeMismatchError as error:
            raise UserError(f"{error} Run python -m clockdistill.data.check to list all such images.") from error

    def _transform_annotations(self, dataset_dict: dict, transforms, image_shape: tuple[int, int]) -> None:
        crowds = [a for a in dataset_dict["annotations"] if a.get("iscrowd", 0)]
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        boxes = [utils.transform_instance_annotations(dict(a), transforms, image_shape) for a in crowds]
        dataset_dict["ignored"] = utils.filter_empty_instances(utils.annotations_to_instances(boxes, image_shape))
