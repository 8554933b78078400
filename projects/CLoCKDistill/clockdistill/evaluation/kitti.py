"""KITTI's own metric as a Detectron2 evaluator."""

import logging
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor

from ..data.kitti import DONT_CARE
from ..errors import UserError
from .kitti_metric import DIFFICULTIES, MIN_OVERLAP, Detections, Labels, evaluate_kitti

logger = logging.getLogger(__name__)


class KITTIEvaluator(DatasetEvaluator):
    """Average precision of KITTI's 2D object benchmark, see `kitti_metric`, and its result files.

    Its classes are Car, Pedestrian and Cyclist, as far as the data set has them. A data set that has none of them, or
    is not in KITTI's format, is passed over with a warning.

    Args:
        dataset_name: in Detectron2's catalog, by `register_kitti`.
        output_dir: `<output_dir>/<dataset_name>_results/<frame>.txt` is written for each image, empty where nothing
            was detected: what the benchmark's server and its development kit read. Numbers in it are the shortest
            decimals that give the model's floats, and it is these that are evaluated.
    """

    def __init__(self, dataset_name: str, output_dir: str):
        self.dataset_name = dataset_name
        # the name may hold a path
        self.folder = Path(output_dir, re.sub(r"[^\w.-]+", "_", dataset_name) + "_results")
        records = DatasetCatalog.get(dataset_name)
        self.class_names = MetadataCatalog.get(dataset_name).get("thing_classes", [])
        self.classes = [name for name in MIN_OVERLAP if name in self.class_names]
        if not all("type" in annotation for record in records for annotation in record["annotations"]):
            self.classes = []
        if not self.classes:
            logger.warning(
                f"The data set {dataset_name} has no {', '.join(MIN_OVERLAP)} in KITTI's format: "
                "its evaluation leaves out KITTI's metric"
            )
        self.frames = {record["image_id"]: Path(record["file_name"]).stem for record in records}
        self.labels = [read_record(record) for record in records] if self.classes else []

    def reset(self) -> None:
        self.found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with `image_id`.
            outputs: with `instances`: `pred_boxes` in pixels, `scores`, `pred_classes`.

        Raises:
            UserError: an image that the data set does not have.
        """
        for x, output in zip(inputs, outputs, strict=True):
            if x["image_id"] not in self.frames:
                raise UserError(
                    f"the data set {self.dataset_name} has no image {x['image_id']}: give KITTIEvaluator, in "
                    "dataloader.evaluator, the data set of dataloader.test"
                )
            found = output["instances"]
            boxes, scores = to_decimals(found.pred_boxes.tensor), to_decimals(found.scores)
            self.found[x["image_id"]] = boxes, scores, found.pred_classes.cpu().numpy()

    def evaluate(self) -> OrderedDict:
        """{"kitti": {"Car/easy/AP40": percent, …}} on the main process, see `evaluate_kitti`; elsewhere nothing."""
        comm.synchronize()
        found = {}
        # a sampler may give an image to several processes, to make their numbers equal
        for share in comm.gather(self.found, dst=0):
            found |= share
        if not (comm.is_main_process() and self.classes):
            return OrderedDict()
        nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
        names = np.array(self.class_names)
        detections = []
        for image_id in self.frames:
            boxes, scores, labels = found.get(image_id, nothing)
            detections.append(Detections(names[labels], boxes, scores))
        write_results(self.folder, list(self.frames.values()), detections)
        results = evaluate_kitti(self.labels, detections, self.classes)
        logger.info(f"KITTI's AP on {self.dataset_name}, with 40 and 11 recall points:\n{results_table(results)}")
        return OrderedDict(kitti=results)


def read_record(record: dict) -> Labels:
    """Lines of the label file of an image out of Detectron2's dictionary, as `load_kitti` makes it.

    Types are the file's and not what a class set makes of them: the benchmark counts no Van as a Car.
    """
    # a DontCare region is there once for each class
    lines = [a for a in record["annotations"] if a["type"] != DONT_CARE or a["category_id"] == 0]
    return Labels(
        types=np.array([a["type"] for a in lines], dtype=str),
        boxes=np.array([a["bbox"] for a in lines], dtype=np.float64).reshape(-1, 4),
        occluded=np.array([a["occluded"] for a in lines], dtype=int),
        truncated=np.array([a["truncated"] for a in lines], dtype=np.float64),
    )


def to_decimals(values: Tensor) -> np.ndarray:
    """Of the numbers that float32 rounds to these values the ones with the fewest decimals, as float64.

    A label's 25.3 that went through a float32 is 25.3 again, and not 25.299999.
    """
    values = values.cpu().float().numpy()
    exact = values.astype(np.float64)
    numbers = exact.copy()
    for decimals in range(12, -1, -1):
        rounded = np.round(exact, decimals)
        np.copyto(numbers, rounded, where=rounded.astype(np.float32) == values)
    return numbers


def write_results(folder: Path, frames: list[str], detections: list[Detections]) -> None:
    """Result files in KITTI's format, 16 fields a line, in the place of any that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.txt"):
        old.unlink()
    for frame, found in zip(frames, detections, strict=True):
        lines = zip(found.types.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True)
        text = "".join(
            f"{name} -1 -1 -10 {left} {top} {right} {bottom} -1 -1 -1 -1000 -1000 -1000 -10 {score}\n"
            for name, (left, top, right, bottom), score in lines
        )
        (folder / f"{frame}.txt").write_text(text, encoding="utf-8")


def results_table(results: dict[str, float]) -> str:
    """A row a class, AP with 40 recall points and then with 11 for each difficulty."""
    columns = [f"{difficulty}/{metric}" for metric in ("AP40", "AP11") for difficulty in DIFFICULTIES]
    names = list(dict.fromkeys(key.split("/")[0] for key in results))
    rows = [[name, *(results[f"{name}/{column}"] for column in columns)] for name in names]
    return tabulate(rows, ["class", *(c.replace("/", " ") for c in columns)], tablefmt="pipe", floatfmt=".2f")
