#!/usr/bin/env python
"""Measure memory and time of inference and of a training step for the full-size models, on one image of KITTI's size.

Each model runs in its own process. On the CPU, memory is the peak of the whole process, Python and libraries included;
on a GPU, the peak of PyTorch's tensors. Weights and image are random.

tools/benchmark_models.py                        all models in float32, with a table at the end
tools/benchmark_models.py --models dino dab_detr
tools/benchmark_models.py --models dino --precision bfloat16 --compile
tools/benchmark_models.py --distillation --models dino_r50_to_r18
                                                 what distillation costs more than its parts, measured in turns
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

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

import families
from clockdistill.distillation import DistillationHook
from clockdistill.engine import load_config
from clockdistill.engine.arguments import natural
from clockdistill.engine.train import build_distillation, build_optimizer
from clockdistill.evaluation.cost import MEBI, blank_image, count_flops, count_parameters, environment, latency

STUDENTS = {
    path.stem.partition("_coco_")[0]: path
    for path in families.TRAINING_CONFIGS
    if "_coco_" in path.stem and "r18" in path.stem
}
MODELS = [*families.VARIANTS, *STUDENTS]
DISTILLED = [name for name in STUDENTS if "_to_" in name]
IMAGE = (375, 1242)
OBJECTS = 7  # the mean of KITTI
PRECISIONS = ("float32", "bfloat16")  # bfloat16: mixed precision, as with train.amp.enabled=True


def random_image(num_classes: int, size: tuple[int, int] | None = None) -> dict:
    """Make an image with objects, as returned by the training loader, by default of the size `IMAGE`."""
    size = size or IMAGE
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(OBJECTS, 2, generator=generator) * 0.7
    extent = 0.05 + torch.rand(OBJECTS, 2, generator=generator) * 0.25
    scale = torch.tensor(size[::-1])
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.cat((corner * scale, (corner + extent) * scale), 1))
    instances.gt_classes = torch.randint(num_classes, (OBJECTS,), generator=generator)
    image = torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator)
    return dict(image=image, height=size[0], width=size[1], instances=instances)


def config_of(name: str) -> DictConfig:
    """Get the config of one of `MODELS`."""
    if name in families.VARIANTS:
        return families.training_config(name)
    cfg = load_config(str(STUDENTS[name]))
    if "distillation" in cfg:
        # an ordinary step: without calibration before the training, and without the gradient shares of some steps
        cfg.distillation.update(embedding="random", gradient_share_period=0)
    return cfg


def random_teacher(cfg: DictConfig, folder: str) -> None:
    """Save random weights for the config's teacher."""
    path = os.path.join(folder, "teacher.pth")
    torch.save({"model": instantiate(load_config(cfg.distillation.teacher.config).model).state_dict()}, path)
    cfg.distillation.teacher.checkpoint = path


def training_step(
    cfg: DictConfig, model: nn.Module, precision: torch.dtype = torch.float32
) -> Callable[[list[dict]], None]:
    """Return a function that trains on a batch."""
    hook = random_distillation(cfg, model)
    return step_with(cfg, model, hook, build_optimizer(cfg, model, hook), precision)


def random_distillation(cfg: DictConfig, model: nn.Module) -> DistillationHook | None:
    with tempfile.TemporaryDirectory() as folder:
        if cfg.get("distillation") is not None:
            random_teacher(cfg, folder)
        return build_distillation(cfg, model)


def step_with(
    cfg: DictConfig,
    model: nn.Module,
    hook: DistillationHook | None,
    optimizer: torch.optim.Optimizer,
    precision: torch.dtype = torch.float32,
) -> Callable[[list[dict]], None]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step(data: list[dict]) -> None:
        with autocast(model.device, precision):
            losses = model(data) if hook is None else hook.compute_losses(model, data)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, cfg.train.clip_grad)
        optimizer.step()

    return step


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def median_seconds(run: Callable[[], None], rounds: int, device: torch.device) -> float:
    """Time a function, after one warm-up round."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure_distillation(
    cfg: DictConfig, device: torch.device, rounds: int, precision: torch.dtype = torch.float32
) -> dict[str, list[float]]:
    """Time the student's plain step, the teacher's inference and the distillation step in turns, in one process.

    Returns:
        For each of them, seconds of the rounds on the clock and of the processor, all threads together.
    """
    torch.manual_seed(0)
    model = instantiate(cfg.model).to(device).train()
    hook = random_distillation(cfg, model)
    optimizer = build_optimizer(cfg, model, hook)
    batch = [random_image(model.num_classes)]

    def infer(batch: list[dict]) -> None:
        with torch.no_grad(), autocast(device, precision):
            hook.teacher(batch)

    runs = dict(
        plain=step_with(cfg, model, None, optimizer, precision),
        teacher=infer,
        distilled=step_with(cfg, model, hook, optimizer, precision),
    )
    times = {f"{name}{clock}": [] for name in runs for clock in ("", "_processor")}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start, processor = time.perf_counter(), time.process_time()
            run(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
            times[f"{name}_processor"].append(time.process_time() - processor)
    return {name: values[1:] for name, values in times.items()}


def distillation_row(times: dict[str, list[float]]) -> list[float]:
    """Return medians in ms, and medians of the rounds' ratios of the distillation step to the sum of its parts."""
    row = [1000 * statistics.median(times[name]) for name in ("plain", "teacher", "distilled")]
    for clock in ("", "_processor"):
        rounds = zip(*(times[f"{name}{clock}"] for name in ("distilled", "plain", "teacher")), strict=True)
        row.append(statistics.median(distilled / (plain + teacher) for distilled, plain, teacher in rounds))
    return row


def peak_mebibytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / MEBI
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024) / MEBI


def measure(
    cfg: DictConfig,
    device: torch.device,
    rounds: int,
    precision: torch.dtype = torch.float32,
    compiled: bool = False,
) -> dict[str, float]:
    """Measure inference first, because the peak memory of a process never falls, and count operations last."""
    torch.manual_seed(0)
    model = instantiate(cfg.model).to(device).eval()
    x = random_image(model.num_classes)
    result = dict(parameters=count_parameters(model))
    if compiled:
        for part in (model.backbone, model.encoder):
            part.compile()
    with autocast(device, precision):
        result["inference_ms"] = statistics.median(latency({"model": model}, [x], rounds)["model"])
    result["inference_mib"] = peak_mebibytes(device)
    step = training_step(cfg, model.train(), precision)
    result["training_ms"] = 1000 * median_seconds(lambda: step([x]), rounds, device)
    result["training_mib"] = peak_mebibytes(device)
    result["gflops"] = count_flops(instantiate(cfg.model).to(device).eval(), blank_image(*IMAGE)) / 1e9
    return result


def results_table(results: dict[str, dict[str, float]]) -> str:
    rows = [
        [name, r["parameters"] / 1e6, r["gflops"]]
        + [r[key] for key in ("inference_ms", "inference_mib", "training_ms", "training_mib")]
        for name, r in results.items()
    ]
    headers = ["", "parameters (M)", "GFLOPs", "inference (ms)", "memory (MiB)", "training step (ms)", "memory (MiB)"]
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=("", ".2f", ".1f", ".0f", ".0f", ".0f", ".0f"))


def distillation_table(results: dict[str, dict[str, list[float]]]) -> str:
    headers = ["", "plain step (ms)", "teacher (ms)", "distillation step (ms)", "ratio to the sum", "in processor time"]
    rows = [[name, *distillation_row(times)] for name, times in results.items()]
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=("", ".0f", ".0f", ".0f", ".2f", ".2f"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, metavar="MODEL", help=f"any of {', '.join(MODELS)} (default: all)"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=natural, default=torch.get_num_threads(), help="of PyTorch on the CPU (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=natural, default=3, help="the median of these is shown (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="(default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile backbone and encoder with torch.compile")
    parser.add_argument(
        "--distillation",
        action="store_true",
        help=f"compare the steps of {', '.join(DISTILLED)} with the student's plain step and the teacher's inference",
    )
    parser.add_argument("--alone", action="store_true", help="measure the first model in this process and print JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    models = args.models or (DISTILLED if args.distillation else MODELS)
    if args.distillation and args.compile:
        parser.error("--distillation does not take --compile")
    if args.distillation and not set(models) <= set(DISTILLED):
        parser.error(f"--distillation takes only {', '.join(DISTILLED)}")
    if args.alone:
        options = [config_of(models[0]), device, args.rounds, getattr(torch, args.precision)]
        measured = measure_distillation(*options) if args.distillation else measure(*options, args.compile)
        print(json.dumps(measured))
        return
    results = {}
    options = ["--device", args.device, "--threads", str(args.threads), "--rounds", str(args.rounds)]
    options += ["--precision", args.precision, *["--compile"] * args.compile]
    options += ["--alone", *["--distillation"] * args.distillation]
    for name in tqdm(models, disable=None):
        command = [sys.executable, __file__, *options, "--models", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
    table = distillation_table(results) if args.distillation else results_table(results)
    setting = f"{IMAGE[0]}x{IMAGE[1]}, batch of 1, {args.precision}{', compiled' * args.compile}"
    print(f"{tabulate(environment(device).items())}\n\n{setting}\n\n{table}")


if __name__ == "__main__":
    main()
