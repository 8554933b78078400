"""KITTI's metric as a Detectron2 evaluator."""

import logging
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
from .results import as_file_name

logger = logging.getLogger(__name__)


class KITTIEvaluator(DatasetEvaluator):
    """Compute average precision of KITTI's 2D object benchmark, see `kitti_metric`, and write its result files.

    It evaluates those of the classes Car, Pedestrian and Cyclist that the dataset has. If it has none of them, or is
    not in KITTI's format, the evaluator logs a warning and returns no results.

    Args:
        dataset_name: a dataset that `register_kitti` put into Detectron2's catalog.
        output_dir: the evaluator writes `<output_dir>/<dataset_name>_results/<frame>.txt` for each image, in the format
            of the benchmark's server and development kit; the file is empty if nothing was detected. Numbers are
            rounded to the fewest decimals that give the same float32, and evaluated as rounded.
    """

    def __init__(self, dataset_name: str, output_dir: str):
        self.dataset_name = dataset_name
        self.folder = Path(output_dir, f"{as_file_name(dataset_name)}_results")
        records = DatasetCatalog.get(dataset_name)
        self.class_names = MetadataCatalog.get(dataset_name).get("thing_classes", [])
        self.classes = [name for name in MIN_OVERLAP if name in self.class_names]
        if not all("type" in annotation for record in records for annotation in record["annotations"]):
            self.classes = []
        if not self.classes:
            logger.warning(
                f"The dataset {dataset_name} has no {', '.join(MIN_OVERLAP)} in KITTI's format: skipping KITTI's metric"
            )
        self.frames = {record["image_id"]: Path(record["file_name"]).stem for record in records}
        self.labels = [read_record(record) for record in records] if self.classes else []

    def reset(self) -> None:
        self.predictions: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Collect the predictions for a batch.

        Args:
            inputs: dictionaries with `image_id`.
            outputs: dictionaries with `instances`: `pred_boxes` in pixels, `scores` and `pred_classes`.

        Raises:
            UserError: if an image is not in the dataset.
        """
        for x, output in zip(inputs, outputs, strict=True):
            if x["image_id"] not in self.frames:
                raise UserError(
                    f"the dataset {self.dataset_name} has no image {x['image_id']}: set the dataset_name of "
                    "KITTIEvaluator in dataloader.evaluator to the dataset of dataloader.test"
                )
            instances = output["instances"]
            boxes, scores = to_decimals(instances.pred_boxes.tensor), to_decimals(instances.scores)
            self.predictions[x["image_id"]] = boxes, scores, instances.pred_classes.cpu().numpy()

    def evaluate(self) -> OrderedDict:
        """Return {"kitti": {"Car/easy/AP40": percent, …}} on the main process, see `evaluate_kitti`; {} on others."""
        comm.synchronize()
        predictions = {}
        # a sampler may give an image to several processes to give each the same number
        for part in comm.gather(self.predictions, dst=0):
            predictions |= part
        if not (comm.is_main_process() and self.classes):
            return OrderedDict()
        empty = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
        names = np.array(self.class_names)
        detections = []
        for image_id in self.frames:
            boxes, scores, labels = predictions.get(image_id, empty)
            detections.append(Detections(names[labels], boxes, scores))
        write_results(self.folder, list(self.frames.values()), detections)
        results = evaluate_kitti(self.labels, detections, self.classes)
        logger.info(f"KITTI's AP on {self.dataset_name}, with 40 and 11 recall points:\n{results_table(results)}")
        return OrderedDict(kitti=results)


def read_record(record: dict) -> Labels:
    """Recover an image's label file from a record of `read_kitti`.

    Types are those of the file, even if the class set maps them to others: the benchmark does not count a Van as a Car.
    """
    # records repeat a DontCare region for each class
    lines = [a for a in record["annotations"] if a["type"] != DONT_CARE or a["category_id"] == 0]
    return Labels(
        types=np.array([a["type"] for a in lines], dtype=str),
        boxes=np.array([a["bbox"] for a in lines], dtype=np.float64).reshape(-1, 4),
        occluded=np.array([a["occluded"] for a in lines], dtype=int),
        truncated=np.array([a["truncated"] for a in lines], dtype=np.float64),
    )


def to_decimals(values: Tensor) -> np.ndarray:
    """Round to the fewest decimals that give the same float32, as float64: 25.299999 becomes 25.3."""
    values = values.cpu().float().numpy()
    exact = values.astype(np.float64)
    numbers = exact.copy()
    for decimals in range(12, -1, -1):
        rounded = np.round(exact, decimals)
        np.copyto(numbers, rounded, where=rounded.astype(np.float32) == values)
    return numbers


def write_results(folder: Path, frames: list[str], detections: list[Detections]) -> None:
    """Write result files in KITTI's format, 16 fields per line, after removing any old ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.txt"):
        old.unlink()
    for frame, lines in zip(frames, detections, strict=True):
        rows = zip(lines.types.tolist(), lines.boxes.tolist(), lines.scores.tolist(), strict=True)
        text = "".join(
            f"{name} -1 -1 -10 {left} {top} {right} {bottom} -1 -1 -1 -1000 -1000 -1000 -10 {score}\n"
            for name, (left, top, right, bottom), score in rows
        )
        (folder / f"{frame}.txt").write_text(text, encoding="utf-8")


def results_table(results: dict[str, float]) -> str:
    """Table of AP with one row per class: 40 recall points by difficulty, then 11."""
    columns = [f"{difficulty}/{metric}" for metric in ("AP40", "AP11") for difficulty in DIFFICULTIES]
    names = list(dict.fromkeys(key.split("/")[0] for key in results))
    rows = [[name, *(results[f"{name}/{column}"] for column in columns)] for name in names]
    return tabulate(rows, ["class", *(c.replace("/", " ") for c in columns)], tablefmt="pipe", floatfmt=".2f")
