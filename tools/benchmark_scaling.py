#!/usr/bin/env python
"""Measure how time and memory grow with tokens, images, objects and classes, each at 1, 4 and 16 times its number.

The models are those of the street scenes, with random weights and images, on the CPU. A distillation step is the
student's with its teacher. Time is the processor's, the best of some rounds in which the sizes take turns. Memory is
the peak of what a run allocates: PyTorch's tensors, or Python's and NumPy's objects for the metrics. With an exponent
e, cost grows like size^e, by a line through the logarithms. The last exponent is that of the largest two sizes, where
constant parts matter least.

tools/benchmark_scaling.py
tools/benchmark_scaling.py --only tokens classes --rounds 5
"""

import argparse
import tracemalloc
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.structures import BoxMode
from omegaconf import DictConfig
from tabulate import tabulate
from tqdm import tqdm

import families
from benchmark_data import random_detections, random_record
from benchmark_models import random_image, times_in_turns, training_step
from clockdistill.data import KITTI_CLASSES
from clockdistill.engine import load_config
from clockdistill.engine.arguments import natural
from clockdistill.evaluation.cost import MEBI, environment, peak_allocation
from clockdistill.evaluation.kitti import read_record
from clockdistill.evaluation.kitti_metric import MIN_OVERLAP, Detections, evaluate_kitti
from clockdistill.evaluation.matching import match

FACTORS = (1, 4, 16)
IMAGE = (96, 320)
OBJECTS = 8
CLASSES = 5
DATASET = 100  # images
DETECTIONS = 30  # per image
CPU = torch.device("cpu")

Workload = Callable[[int], Callable[[], object]]  # from a factor to a run
Peak = Callable[[Callable[[], object]], int]


def street_config(family: str) -> DictConfig:
    """Get the config of the demo's distillation, with an ordinary step."""
    cfg = load_config(str(families.CONFIGS / family / f"{family}_r18_small_to_tiny_street.py"))
    cfg.distillation.update(embedding="random", gradient_share_period=0)
    return cfg


def images(cfg: DictConfig, side: int, objects: int = OBJECTS, count: int = 1) -> list[dict]:
    size = IMAGE[0] * side, IMAGE[1] * side
    return [random_image(cfg.model.num_classes, size, objects) for _ in range(count)]


def inference(cfg: DictConfig, batch: list[dict]) -> Callable[[], object]:
    model = instantiate(cfg.model).eval()
    return torch.no_grad()(lambda: model(batch))


def distillation_step(cfg: DictConfig, batch: list[dict]) -> Callable[[], object]:
    step = training_step(cfg, instantiate(cfg.model).train())
    return lambda: step(batch)


def results(count: int) -> tuple[list[dict], list]:
    """Make the records and the predictions of a dataset."""
    rng = np.random.default_rng(0)
    records = [random_record(rng, i) for i in range(count)]
    return records, [random_detections(rng, record, DETECTIONS) for record in records]


def kitti_metric(count: int) -> Callable[[], object]:
    records, predictions = results(count)
    names = np.array(KITTI_CLASSES)
    labels = [read_record(record) for record in records]
    detections = [
        Detections(names[p.pred_classes], p.pred_boxes.tensor.double().numpy(), p.scores.double().numpy())
        for p in predictions
    ]
    return lambda: evaluate_kitti(labels, detections, list(MIN_OVERLAP))


def coco_matching(count: int) -> Callable[[], object]:
    records, predictions = results(count)
    for annotation in (a for record in records for a in record["annotations"]):
        annotation["bbox_mode"] = BoxMode.XYXY_ABS
    return lambda: match(records, predictions, len(KITTI_CLASSES))


def workloads(family: str) -> dict[str, dict[str, tuple[Workload, Peak]]]:
    """Return the runs that each growth is measured on, with the measure of their memory."""

    def infer(factor: int) -> Callable[[], object]:
        cfg = street_config(family)
        return inference(cfg, images(cfg, round(factor**0.5)))

    def train(side: int = 1, objects: int = 1, count: int = 1, classes: int = 1) -> Callable[[], object]:
        cfg = street_config(family)
        cfg.model.num_classes = classes * CLASSES
        return distillation_step(cfg, images(cfg, side, objects * OBJECTS, count))

    def step(workload: Workload) -> dict[str, tuple[Workload, Peak]]:
        return {"distillation step": (workload, peak_allocation)}

    return {
        "tokens": {"inference": (infer, peak_allocation)} | step(lambda factor: train(side=round(factor**0.5))),
        "images": {
            **step(lambda factor: train(count=factor)),
            "KITTI's metric": (lambda factor: kitti_metric(DATASET * factor), peak_of_objects),
            "COCO matching": (lambda factor: coco_matching(DATASET * factor), peak_of_objects),
        },
        "objects": step(lambda factor: train(objects=factor)),
        "classes": step(lambda factor: train(classes=factor)),
    }


def peak_of_objects(run: Callable[[], object]) -> int:
    """Measure the peak memory of the Python and NumPy objects that a function allocates, in bytes."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def measure(workload: Workload, peak: Peak, rounds: int) -> tuple[list[float], list[float]]:
    """Return milliseconds and MiB at each of `FACTORS`."""
    torch.manual_seed(0)
    runs = {str(factor): workload(factor) for factor in FACTORS}
    times = times_in_turns(runs, rounds, CPU)
    milliseconds = [1000 * min(processor for _, processor in times[name]) for name in runs]
    return milliseconds, [peak(run) / MEBI for run in runs.values()]


def exponent(costs: Sequence[float]) -> float:
    """Return the slope of logarithmic costs over logarithmic factors, by least squares, of the largest factors."""
    return float(np.polyfit(np.log(FACTORS[-len(costs) :]), np.log(costs), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(workloads(""))
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="what grows (default: all)")
    parser.add_argument(
        "--families", nargs="+", choices=families.MODELS, default=["dino", "dab_detr"], help="(default: dino dab_detr)"
    )
    parser.add_argument("--threads", type=natural, default=1, help="of PyTorch (default: %(default)s)")
    parser.add_argument("--rounds", type=natural, default=3, help="the best of these counts (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tasks = {}
    for growth in args.only:
        for family in args.families:
            for name, task in workloads(family)[growth].items():
                of_model = task[1] is peak_allocation
                tasks[growth, f"{name}, {family}" if of_model else name] = task
    rows = []
    for (growth, name), task in tqdm(tasks.items(), disable=None):
        row = [growth, name]
        for costs in measure(*task, args.rounds):
            row += [" / ".join(f"{cost:.3g}" for cost in costs), exponent(costs), exponent(costs[-2:])]
        rows.append(row)
    of_factors = ", ".join(f"{factor}x" for factor in FACTORS)
    headers = ["grows", "run", f"ms at {of_factors}", "exponent", "last", "MiB", "exponent", "last"]
    print(f"{tabulate(environment(CPU).items())}\n\n{tabulate(rows, headers, tablefmt='pipe', floatfmt='.2f')}")


if __name__ == "__main__":
    main()
