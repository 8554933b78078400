#!/usr/bin/env python
"""Memory and time of an inference and of a training step of the full-size models, on one image of KITTI's size.

Each model is measured in a process of its own. On the CPU memory is the most that the process ever occupied, Python and
libraries included; on a GPU the most of PyTorch's tensors. Weights and image are random, float32.

tools/benchmark_models.py                        all of them, a table at the end
tools/benchmark_models.py --models dino dab_detr
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from clockdistill.engine import load_config
from clockdistill.engine.train import build_distillation, build_optimizer
from clockdistill.evaluation.cost import MEBI, blank_image, count_flops, count_parameters, environment, latency

CONFIGS = Path(__file__).resolve().parents[1] / "projects/CLoCKDistill/configs"
REFINE = "model.decoder.refine=True"
# title, config, overrides
MODELS = {
    "dino": ("DINO R-50", "dino/dino_r50_coco_12ep.py", ()),
    "deformable_detr": ("Deformable DETR R-50", "deformable_detr/deformable_detr_r50_coco_50ep.py", ()),
    "deformable_detr.refine": (
        "Deformable DETR R-50, refined boxes",
        "deformable_detr/deformable_detr_r50_coco_50ep.py",
        (REFINE,),
    ),
    "deformable_detr.two_stage": (
        "Deformable DETR R-50, two-stage",
        "deformable_detr/deformable_detr_r50_coco_50ep.py",
        (REFINE, "model.two_stage=True"),
    ),
    "dab_detr": ("DAB-DETR R-50", "dab_detr/dab_detr_r50_coco_50ep.py", ()),
    "dab_detr.dc5": ("DAB-DETR R-50, DC5", "dab_detr/dab_detr_r50_coco_50ep.py", ("model.backbone.dilate_res5=True",)),
    "dino_r18": ("DINO R-18", "dino/dino_r18_coco_12ep.py", ()),
    # gradients' shares, which are measured once in many steps, would take a backward pass a term
    "dino_r18.distilled": (
        "DINO R-18, distilled from R-50",
        "dino/dino_r50_to_r18_coco_12ep.py",
        ("distillation.period=0",),
    ),
}
IMAGE = (375, 1242)
OBJECTS = 7  # of an image of KITTI, on average


def random_image(num_classes: int) -> dict:
    """An image with objects as the training loader gives it."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(OBJECTS, 2, generator=generator) * 0.7
    extent = 0.05 + torch.rand(OBJECTS, 2, generator=generator) * 0.25
    scale = torch.tensor(IMAGE[::-1])
    instances = Instances(IMAGE)
    instances.gt_boxes = Boxes(torch.cat((corner * scale, (corner + extent) * scale), 1))
    instances.gt_classes = torch.randint(num_classes, (OBJECTS,), generator=generator)
    image = torch.randint(256, (3, *IMAGE), dtype=torch.uint8, generator=generator)
    return dict(image=image, height=IMAGE[0], width=IMAGE[1], instances=instances)


def random_teacher(cfg: DictConfig, folder: str) -> None:
    """A checkpoint for the config's teacher."""
    path = os.path.join(folder, "teacher.pth")
    torch.save({"model": instantiate(load_config(cfg.distillation.teacher.config).model).state_dict()}, path)
    cfg.distillation.teacher.checkpoint = path


def training_step(cfg: DictConfig, model: nn.Module, data: list[dict]) -> Callable[[], None]:
    with tempfile.TemporaryDirectory() as folder:
        if cfg.get("distillation") is not None:
            random_teacher(cfg, folder)
        hook = build_distillation(cfg, model)
    optimizer = build_optimizer(cfg, model, hook)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step() -> None:
        losses = model(data) if hook is None else hook.step_losses(model, data)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, cfg.train.clip_grad)
        optimizer.step()

    return step


def median_seconds(run: Callable[[], None], rounds: int, device: torch.device) -> float:
    """One round before the others warms up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def peak_mebibytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / MEBI
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024) / MEBI


def measure(name: str, device: torch.device, rounds: int) -> dict[str, float]:
    """Inference comes first, since the process's peak never falls, and the count of operations last."""
    torch.manual_seed(0)
    _, config, overrides = MODELS[name]
    cfg = load_config(str(CONFIGS / config), overrides)
    model = instantiate(cfg.model).to(device).eval()
    x = random_image(model.num_classes)
    result = dict(parameters=count_parameters(model))
    result["inference_ms"] = statistics.median(latency({name: model}, [x], rounds)[name])
    result["inference_mib"] = peak_mebibytes(device)
    step = training_step(cfg, model.train(), [x])
    result["training_ms"] = 1000 * median_seconds(step, rounds, device)
    result["training_mib"] = peak_mebibytes(device)
    result["gflops"] = count_flops(model.eval(), blank_image(*IMAGE)) / 1e9
    return result


def results_table(results: dict[str, dict[str, float]]) -> str:
    rows = [
        [MODELS[name][0], r["parameters"] / 1e6, r["gflops"]]
        + [r[key] for key in ("inference_ms", "inference_mib", "training_ms", "training_mib")]
        for name, r in results.items()
    ]
    headers = ["", "parameters (M)", "GFLOPs", "inference (ms)", "memory (MiB)", "training step (ms)", "memory (MiB)"]
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=("", ".2f", ".1f", ".0f", ".0f", ".0f", ".0f"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL", help=f"of {', '.join(MODELS)}"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of the CPU (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts (default: %(default)s)")
    parser.add_argument("--alone", action="store_true", help="measure one model in this process and print JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.alone:
        print(json.dumps(measure(args.models[0], device, args.rounds)))
        return
    results = {}
    options = ["--device", args.device, "--threads", str(args.threads), "--rounds", str(args.rounds), "--alone"]
    for name in tqdm(args.models, disable=None):
        command = [sys.executable, __file__, *options, "--models", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
    print(f"{tabulate(environment(device).items())}\n\n{IMAGE[0]}x{IMAGE[1]}, batch of 1\n\n{results_table(results)}")


if __name__ == "__main__":
    main()
