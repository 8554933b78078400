#!/usr/bin/env python
"""Measure memory and time of inference and of a training step for the full-size models, on one image of KITTI's size.

Each model runs in its own process. On the CPU, memory is the peak of the whole process, Python and libraries included;
on a GPU, the peak of PyTorch's tensors. Weights and image are random.

The yardstick is a matrix product of the encoder's feed-forward network, tokens x embed_dim x feedforward_dim, by the
same threads, in turns with the model. Shares are what the model's multiply-adds, two operations each, reach of its
rate. At inference, these are the column GFLOPs; in training, the products, convolutions and deformable attention of the
forward and the backward pass, with denoising queries and the teacher, and without gradients that frozen layers save.

tools/benchmark_models.py                        all models in float32, with a table at the end
tools/benchmark_models.py --models dino dab_detr
tools/benchmark_models.py --models dino --precision bfloat16 --compile
tools/benchmark_models.py --inference --models dino
                                                 inference in both precisions, eager and compiled, in turns
tools/benchmark_models.py --profile --models dino
                                                 the operators' shares of inference
tools/benchmark_models.py --distillation --models dino_r50_to_r18
                                                 what distillation costs more than its parts, measured in turns
"""

import argparse
import functools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import families
from clockdistill.distillation import DistillationHook
from clockdistill.engine import load_config
from clockdistill.engine.arguments import natural
from clockdistill.engine.train import build_distillation, build_optimizer
from clockdistill.evaluation.cost import (
    MEBI,
    SAMPLE_FLOPS,
    blank_image,
    count_flops,
    count_parameters,
    environment,
    latency,
)
from clockdistill.layers import no_fused_attention

STUDENTS = {
    path.stem.partition("_coco_")[0]: path
    for path in families.TRAINING_CONFIGS
    if "_coco_" in path.stem and "r18" in path.stem
}
MODELS = [*families.VARIANTS, *STUDENTS]
DISTILLED = [name for name in STUDENTS if "_to_" in name]
IMAGE = (375, 1242)
OBJECTS = 7  # the mean of KITTI
PRODUCTS = 10  # timed together
PRECISIONS = ("float32", "bfloat16")  # bfloat16: mixed precision, as with train.amp.enabled=True


def random_image(num_classes: int, size: tuple[int, int] | None = None, objects: int = OBJECTS) -> dict:
    """Make an image with objects, as returned by the training loader, by default of the size `IMAGE`."""
    size = size or IMAGE
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(objects, 2, generator=generator) * 0.7
    extent = 0.05 + torch.rand(objects, 2, generator=generator) * 0.25
    scale = torch.tensor(size[::-1])
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.cat((corner * scale, (corner + extent) * scale), 1))
    instances.gt_classes = torch.randint(num_classes, (objects,), generator=generator)
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
    model = load_config(cfg.distillation.teacher.config).model
    model.num_classes = cfg.model.num_classes
    torch.save({"model": instantiate(model).state_dict()}, path)
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


def times_in_turns(
    runs: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[tuple[float, float]]]:
    """Run functions in turns, after a round of warm-up.

    Returns:
        For each of them, seconds of the rounds on the clock and of the processor, all threads together.
    """
    times = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start, processor = time.perf_counter(), time.process_time()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - start, time.process_time() - processor))
    return {name: values[1:] for name, values in times.items()}


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

    plain = step_with(cfg, model, None, optimizer, precision)
    distilled = step_with(cfg, model, hook, optimizer, precision)

    def infer() -> None:
        with torch.no_grad(), autocast(device, precision):
            hook.teacher(batch)

    runs = dict(plain=lambda: plain(batch), teacher=infer, distilled=lambda: distilled(batch))
    times = {}
    for name, values in times_in_turns(runs, rounds, device).items():
        times[name], times[f"{name}_processor"] = map(list, zip(*values, strict=True))
    return times


@torch.no_grad()
def measure_inference(cfg: DictConfig, device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Time inference in both precisions, eager and compiled, and the matrix product in float32, in turns.

    Returns:
        Seconds of the rounds for each of them, and `gflops`.
    """
    torch.manual_seed(0)
    model = instantiate(cfg.model).to(device).eval()
    x = random_image(model.num_classes)
    multiply, product_flops = matrix_products(cfg, model, x, torch.float32)

    def infer(precision: torch.dtype, predict: Callable | None) -> None:
        model.compiled = predict
        with autocast(device, precision):
            model([x])

    runs = {"product": multiply}
    for name in PRECISIONS:
        precision = getattr(torch, name)
        # separately, since a compiled function would otherwise be limited in the number of its variants
        compiled = torch.compile(model.predict, dynamic=False)
        runs[name] = functools.partial(infer, precision, None)
        runs[f"{name}, compiled"] = functools.partial(infer, precision, compiled)
    times = {name: [clock for clock, _ in values] for name, values in times_in_turns(runs, rounds, device).items()}
    flops = 2 * count_flops(instantiate(cfg.model).to(device).eval(), blank_image(*IMAGE))
    return times | {"relative_flops": flops / product_flops}


def inference_table(results: dict[str, dict]) -> str:
    """List medians in ms, of the rounds' ratios to eager float32, and of their shares of the product's rate."""
    headers = ["", "inference", "ms", "times as fast", "share of the product's rate in float32"]
    rows = []
    for model, times in results.items():
        for name in (key for key in times if key.startswith(PRECISIONS)):
            ratio = statistics.median(a / b for a, b in zip(times[PRECISIONS[0]], times[name], strict=True))
            reached = share(times["relative_flops"], times[name], 1, times["product"])
            rows.append([model, name, 1000 * statistics.median(times[name]), ratio, reached])
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=("", "", ".0f", ".2f", ".0%"))


@torch.no_grad()
def measure_profile(cfg: DictConfig, device: torch.device) -> dict[str, float]:
    """Return each operator's own share of the processor time of inference, on the CPU."""
    torch.manual_seed(0)
    model = instantiate(cfg.model).to(device).eval()
    x = random_image(model.num_classes)
    for _ in range(2):
        model([x])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model([x])
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return {name: time / sum(times.values()) for name, time in times.items()}


def profile_table(results: dict[str, dict[str, float]]) -> str:
    """List the operators that have at least 1 % in one of the models."""
    names = {name: max(shares.get(name, 0) for shares in results.values()) for r in results.values() for name in r}
    shown = sorted((name for name in names if names[name] >= 0.01), key=names.get, reverse=True)
    rows = [[name, *(shares.get(name, 0) for shares in results.values())] for name in shown]
    return tabulate(rows, ["operator", *results], tablefmt="pipe", floatfmt=".1%")


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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEBI  # Linux counts in KiB


@torch.no_grad()
def matrix_products(cfg: DictConfig, model: nn.Module, x: dict, precision: torch.dtype) -> tuple[Callable, int]:
    """Return a function that runs `PRODUCTS` products of the encoder's shapes, and their floating-point operations."""
    tokens = model.encode(model.preprocess([x])).tokens.shape[1]
    shape = tokens, model.embed_dim, cfg.model.encoder.feedforward_dim
    a, b = (torch.randn(size, device=model.device, dtype=precision) for size in (shape[:2], shape[1:]))

    def multiply(*_) -> None:
        for _ in range(PRODUCTS):
            a @ b

    return multiply, 2 * PRODUCTS * math.prod(shape)


def count_step_flops(step: Callable[[list[dict]], None], x: dict) -> int:
    """Count the floating-point operations of a training step, two per multiply-add.

    Those of products and convolutions are PyTorch's count. Deformable attention has `SAMPLE_FLOPS` per sampling point
    and channel, and twice as many in the backward pass.
    """

    def sampling(value: torch.Size, shapes, starts, locations, weights: torch.Size, **_) -> int:
        return 2 * SAMPLE_FLOPS * math.prod(weights) * value[3]

    operator = torch.ops.clockdistill
    mapping = {
        operator.ms_deform_attn: sampling,
        operator.ms_deform_attn_backward: lambda gradient, *args, **_: 2 * sampling(*args),
    }
    # PyTorch does not count fused attention on the CPU
    with (
        no_fused_attention(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=mapping) as f,
    ):
        step([x])
    return f.get_total_flops()


def share(flops: float, seconds: Sequence[float], product_flops: float, product_seconds: Sequence[float]) -> float:
    """Return what operations reach of the product's rate, the median of rounds."""
    ratios = (product / own for own, product in zip(seconds, product_seconds, strict=True))
    return flops / product_flops * statistics.median(ratios)


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
    multiply, product_flops = matrix_products(cfg, model, x, precision)
    if compiled:
        model.compile()
    with autocast(device, precision):
        inference = latency({"model": model, "product": multiply}, [x], rounds)
    result["inference_ms"] = statistics.median(inference["model"])
    result["inference_mib"] = peak_mebibytes(device)
    if compiled:
        for part in (model.backbone, model.encoder):
            part.compile()
    step = training_step(cfg, model.train(), precision)
    times = times_in_turns({"step": lambda: step([x]), "product": multiply}, rounds, device)
    training = {name: [1000 * clock for clock, _ in values] for name, values in times.items()}
    result["training_ms"] = statistics.median(training["step"])
    result["training_mib"] = peak_mebibytes(device)

    result["gflops"] = count_flops(instantiate(cfg.model).to(device).eval(), blank_image(*IMAGE)) / 1e9
    step_flops = count_step_flops(training_step(cfg, instantiate(cfg.model).to(device).train()), x)
    products = inference["product"] + training["product"]
    result["product_rate"] = product_flops / statistics.median(products) / 1e6
    result["inference_share"] = share(2e9 * result["gflops"], inference["model"], product_flops, inference["product"])
    result["training_share"] = share(step_flops, training["step"], product_flops, training["product"])
    return result


def results_table(results: dict[str, dict[str, float]]) -> str:
    columns = {
        "inference_ms": "inference (ms)",
        "inference_share": "share of the product's rate",
        "inference_mib": "memory (MiB)",
        "training_ms": "training step (ms)",
        "training_share": "share of the product's rate",
        "training_mib": "memory (MiB)",
        "product_rate": "matrix product (GFLOP/s)",
    }
    rows = [[name, r["parameters"] / 1e6, r["gflops"], *(r[key] for key in columns)] for name, r in results.items()]
    headers = ["", "parameters (M)", "GFLOPs", *columns.values()]
    formats = ["", ".2f", ".1f", *(".0%" if key.endswith("share") else ".0f" for key in columns)]
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=formats)


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
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile with torch.compile: all of inference, and backbone and encoder in training",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--distillation",
        action="store_true",
        help=f"compare the steps of {', '.join(DISTILLED)} with the student's plain step and the teacher's inference",
    )
    mode.add_argument(
        "--inference", action="store_true", help="compare inference in float32 and bfloat16, eager and compiled"
    )
    mode.add_argument("--profile", action="store_true", help="list the operators' shares of inference, on the CPU")
    parser.add_argument("--alone", action="store_true", help="measure the first model in this process and print JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    models = args.models or (DISTILLED if args.distillation else MODELS)
    if args.distillation and args.compile:
        parser.error("--distillation does not take --compile")
    if (args.inference or args.profile) and (args.compile or args.precision != PRECISIONS[0]):
        parser.error("--inference and --profile take neither --compile nor --precision")
    if args.distillation and not set(models) <= set(DISTILLED):
        parser.error(f"--distillation takes only {', '.join(DISTILLED)}")
    if args.alone:
        options = [config_of(models[0]), device, args.rounds, getattr(torch, args.precision)]
        if args.inference:
            measured = measure_inference(*options[:3])
        elif args.profile:
            measured = measure_profile(*options[:2])
        elif args.distillation:
            measured = measure_distillation(*options)
        else:
            measured = measure(*options, args.compile)
        print(json.dumps(measured))
        return
    results = {}
    options = ["--device", args.device, "--threads", str(args.threads), "--rounds", str(args.rounds)]
    options += ["--precision", args.precision, *["--compile"] * args.compile]
    tables = dict(distillation=distillation_table, inference=inference_table, profile=profile_table)
    chosen = next((name for name in tables if getattr(args, name)), None)
    options += ["--alone", *([f"--{chosen}"] if chosen else [])]
    for name in tqdm(models, disable=None):
        command = [sys.executable, __file__, *options, "--models", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
    to_table = tables.get(chosen, results_table)
    setting = [f"{IMAGE[0]}x{IMAGE[1]}", "batch of 1"]
    if chosen in (None, "distillation"):
        setting += [args.precision, *["compiled"] * args.compile]
    print(f"{tabulate(environment(device).items())}\n\n{', '.join(setting)}\n\n{to_table(results)}")


if __name__ == "__main__":
    main()
