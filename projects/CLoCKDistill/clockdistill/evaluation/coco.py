"""COCO's metric for datasets whose name contains a path."""

import os
from typing import Any

from detectron2 import evaluation
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json

from .results import as_file_name


class COCOEvaluator(evaluation.COCOEvaluator):
    """Detectron2's evaluator.

    Annotations that are not in COCO's format are written to `<output_dir>/<dataset_name>_coco_format.json`, with the
    name's slashes and colons replaced: Detectron2 would take the name for a path, perhaps out of the folder.
    """

    def __init__(self, dataset_name: str, *, output_dir: str, **kwargs: Any):
        metadata = MetadataCatalog.get(dataset_name)
        if not metadata.get("json_file"):
            path = os.path.join(output_dir, f"{as_file_name(dataset_name)}_coco_format.json")
            # a file of an earlier run may be out of date
            convert_to_coco_json(dataset_name, path, allow_cached=False)
            metadata.json_file = path
        super().__init__(dataset_name, output_dir=output_dir, **kwargs)
