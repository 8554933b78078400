#!/usr/bin/env python
"""Compare a small student trained with and without distillation, and export it, in under ten minutes on two cores.

tools/demo.py                  one seed: a table, results.json, curves.png, comparison_*.png and the distilled student
                               as distilled.onnx in output/demo/dino
tools/demo.py --seeds 0 1 2    several seeds: a table and output/demo/dino/seeds.json
tools/demo.py --families dino deformable_detr dab_detr --seeds 0 1 2    several families
tools/demo.py --student light  a student with fewer tokens, in output/demo/dino_light

`make demo` runs the first of these.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

import clockdistill.data  # noqa: F401  registers the datasets
import families
from clockdistill.engine import load_config, load_model
from clockdistill.errors import UserError
from clockdistill.evaluation.pictures import draw_comparison, plot_curves, write_png
from clockdistill.evaluation.results import comparison_table, write_json
from clockdistill.export.write import import_package

# The demo changes to the root of the repository; all other paths are relative to it.
ROOT = Path(__file__).resolve().parents[1]
CONFIG = "projects/CLoCKDistill/configs/{0}/{0}_{1}_street.py"
MODELS = {"teacher": "r18_small", "student": "r18_{}", "distilled": "r18_small_to_{}"}
TEACHER_CHECKPOINT = "projects/CLoCKDistill/demo/{0}_r18_small_street.pth"
# the families with a teacher for the demo
FAMILIES = [family for family in families.MODELS if (ROOT / TEACHER_CHECKPOINT.format(family)).is_file()]
# each student's families
STUDENTS = {
    name: [family for family in FAMILIES if (ROOT / CONFIG.format(family, MODELS["student"].format(name))).is_file()]
    for name in ("tiny", "light")
}
OUTPUT = Path("output/demo")

TRAIN_IMAGES, VAL_IMAGES, DATA_SEED = 800, 200, 0
PICTURES = 4
MIN_OBJECTS = 4  # in each picture

PAIR = ("student", "distilled")
OVERRIDES = {"student": [], "distilled": ["distillation.balance={memory: 1.8, logits: 0.3}"]}  # see docs/results.md
TITLES = {"student": "Student", "distilled": "Distilled student", "teacher": "Teacher"}
PROGRESS = re.compile(r"eta: .+?(?=  \w*loss_)")  # Detectron2's progress up to the total loss
PROGRESS_PERIOD = 10  # seconds

START = time.monotonic()


def announce(text: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - START), 60)
    print(f"[{minutes}:{seconds:02d}] {text}", flush=True)


def config_of(family: str, name: str, student: str) -> str:
    return CONFIG.format(family, MODELS[name].format(student))


def output_of(family: str, student: str) -> Path:
    return OUTPUT / (family if student == "tiny" else f"{family}_{student}")


def make_data() -> None:
    root = Path(os.environ["DETECTRON2_DATASETS"], "street_scenes")
    announce(f"Generating {TRAIN_IMAGES} training and {VAL_IMAGES} validation images")
    options = ["--train", str(TRAIN_IMAGES), "--val", str(VAL_IMAGES), "--seed", str(DATA_SEED)]
    run_script("datasets/make_street_scenes.py", "--root", str(root), *options)


def train_net(
    config: str,
    output_dir: Path,
    *arguments: str,
    name: str = "",
    threads: int | None = None,
    abort: threading.Event | None = None,
) -> None:
    """Run train_net.py in an empty output folder and print its progress from time to time.

    Args:
        config, output_dir, arguments: for train_net.py.
        name: printed in front of the progress.
        threads: number of threads (default: all cores).
        abort: stops the run when it is set.
    """
    shutil.rmtree(output_dir, ignore_errors=True)
    command = [sys.executable, "projects/CLoCKDistill/train_net.py", "--config-file", config, *arguments]
    command.append(f"train.output_dir={output_dir}")
    environment = os.environ if threads is None else os.environ | {"OMP_NUM_THREADS": str(threads)}
    shown = time.monotonic()
    last_lines = deque(maxlen=20)
    # not to the terminal, where the progress bars of two processes would overwrite each other
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process:
        for line in process.stdout:
            last_lines.append(line)
            progress = PROGRESS.search(line)
            if progress and time.monotonic() - shown > PROGRESS_PERIOD:
                shown = time.monotonic()
                print(f"       {name:{max(map(len, PAIR))}}  {progress[0]}", flush=True)
            if abort and abort.is_set():
                process.terminate()
    if process.returncode:
        if not (abort and abort.is_set()):
            sys.stderr.writelines(last_lines)
        raise UserError(
            f"train_net.py failed with {config} (exit status {process.returncode}): see the message above or "
            f"{output_dir}/log.txt"
        )


def train_pair(family: str, student: str, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Train the same student without and with distillation and return their COCO metrics."""
    announce(f"Training the {student} {family} student without and with distillation, seed {seed}")
    # in parallel on half of the cores each, because one small model cannot keep all cores busy
    options = dict(threads=max(1, (os.cpu_count() or 2) // 2), abort=(abort := threading.Event()))
    results = {}
    with ThreadPoolExecutor(len(PAIR)) as pool:
        runs = {
            pool.submit(
                train_net,
                config_of(family, name, student),
                folder / name,
                f"train.seed={seed}",
                *OVERRIDES[name],
                name=name,
                **options,
            ): name
            for name in PAIR
        }
        for run in as_completed(runs):
            try:
                run.result()
            except UserError:
                abort.set()  # the other run, which the pool would wait for
                raise
            name = runs[run]
            results[name] = read_json(folder / name / "results.json")["bbox"]
            announce("{}: AP {AP:.1f}, AP50 {AP50:.1f}, AP75 {AP75:.1f}".format(TITLES[name], **results[name]))
    return {name: results[name] for name in PAIR}


def one_seed(family: str, student: str, seed: int) -> str:
    """Train the pair, compare it with the teacher, draw curves and pictures, and return the table."""
    folder = output_of(family, student)
    for old in (folder / "results.json", *folder.glob("*.png"), *folder.glob("*.onnx")):
        old.unlink(missing_ok=True)
    train_pair(family, student, seed, folder)

    announce("Comparing student, distilled student and teacher")
    teacher_config, config = (config_of(family, name, student) for name in ("teacher", "student"))
    checkpoints = {name: folder / name / "model_final.pth" for name in PAIR}
    models = {name: f"{config}:{path}" for name, path in checkpoints.items()}
    models["teacher"] = f"{teacher_config}:{TEACHER_CHECKPOINT.format(family)}"
    compared = [argument for name, model in models.items() for argument in ("--compare", f"{name}={model}")]
    train_net(config, folder / "comparison", "--eval-only", *compared)
    results = read_json(folder / "comparison" / "comparison.json")

    announce("Drawing predictions and training curves")
    runs = {TITLES[name]: str(folder / name / "metrics.json") for name in PAIR}
    plot_curves(runs, str(folder / "curves.png"), reference=(TITLES["teacher"], results["teacher"]["bbox"]["AP"]))
    cfgs = {name: load_config(config, [f"train.init_checkpoint={path}"]) for name, path in checkpoints.items()}
    images = draw_pictures(cfgs["student"], {TITLES[name]: load_model(cfg) for name, cfg in cfgs.items()}, folder)

    write_json(results, folder / "results.json")
    export_and_detect(config, checkpoints["distilled"], images[0], folder)
    written = "results.json, curves.png, comparison_*.png, distilled.onnx and detections/"
    announce(f"Done: {written} are in {folder.resolve()}")
    return comparison_table({TITLES[name]: result for name, result in results.items()})


def several_seeds(family: str, student: str, seeds: list[int]) -> str:
    """Train the pair with every seed and return the table."""
    folder = output_of(family, student)
    (folder / "seeds.json").unlink(missing_ok=True)
    summary = summarize({seed: train_pair(family, student, seed, folder / f"seed{seed}") for seed in seeds})
    write_json(summary, folder / "seeds.json")
    announce(f"Done: seeds.json is in {folder.resolve()}")
    return seeds_table(summary)


@torch.no_grad()
def draw_pictures(cfg: DictConfig, models: dict[str, nn.Module], folder: Path) -> list[Path]:
    """Draw predictions on evenly spaced validation images, of those with enough objects, and return these images."""
    inputs, records = instantiate(cfg.dataloader.test).dataset, instantiate(cfg.dataloader.test.dataset)
    objects = [sum(not a.get("iscrowd") for a in record["annotations"]) for record in records]
    candidates = [i for i, count in enumerate(objects) if count >= MIN_OBJECTS]
    chosen = candidates[:: max(1, len(candidates) // PICTURES)][:PICTURES]
    names = MetadataCatalog.get(cfg.dataloader.test.dataset.names).thing_classes
    paths = [Path(records[i]["file_name"]) for i in chosen]
    for i, path in zip(chosen, paths, strict=True):
        predictions = {title: model([inputs[i]])[0]["instances"].to("cpu") for title, model in models.items()}
        picture = draw_comparison(read_image(str(path), "RGB"), records[i], predictions, names)
        write_png(folder / f"comparison_{path.stem}.png", picture)
    return paths


def export_and_detect(config: str, checkpoint: Path, image: Path, folder: Path) -> None:
    """Export a model to ONNX, and run it on an image without PyTorch."""
    announce("Exporting the distilled student to ONNX")
    model = str(folder / "distilled.onnx")
    opts = ["--opts", f"train.init_checkpoint={checkpoint}"]
    run_script("projects/CLoCKDistill/export.py", "--config-file", config, "--output", model, *opts)
    announce("Running it by deploy/detect.py, which needs no PyTorch")
    run_script("deploy/detect.py", "--model", model, "--input", str(image), "--output", str(folder / "detections"))


def run_script(script: str, *arguments: str) -> None:
    if subprocess.run([sys.executable, script, *arguments]).returncode:
        raise UserError(f"{script} failed: see the message above")


def summarize(results: dict[int, dict[str, dict[str, float]]]) -> dict:
    """Collect the AP of both students and their difference, with mean and sample standard deviation over the seeds.

    The standard deviation of a single seed is None.
    """
    ap = {name: [pair[name]["AP"] for pair in results.values()] for name in PAIR}
    ap["difference"] = [distilled - student for student, distilled in zip(ap["student"], ap["distilled"], strict=True)]
    mean = {name: statistics.mean(values) for name, values in ap.items()}
    std = {name: statistics.stdev(values) if len(values) > 1 else None for name, values in ap.items()}
    return {"seeds": list(results), "AP": ap, "mean": mean, "std": std}


def seeds_table(summary: dict) -> str:
    def cells(student: float, distilled: float, difference: float) -> list[str]:
        return [f"{student:.1f}", f"{distilled:.1f}", f"{difference:+.1f}"]

    rows = [[seed, *cells(*ap)] for seed, *ap in zip(summary["seeds"], *summary["AP"].values(), strict=True)]
    means = cells(*summary["mean"].values())
    stds = ["" if std is None else f" ± {std:.1f}" for std in summary["std"].values()]
    rows.append(["mean ± std", *(mean + std for mean, std in zip(means, stds, strict=True))])
    headers = ["seed", "AP of the student", "AP of the distilled student", "difference"]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=("left", "right", "right", "right"))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="train the pair with each of these")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=["dino"], help="(default: dino)")
    parser.add_argument("--student", choices=STUDENTS, default="tiny", help="(default: tiny)")
    args = parser.parse_args()
    if missing := sorted(set(args.families) - set(STUDENTS[args.student])):
        parser.error(
            f"no {args.student} {' or '.join(missing)}: choose --families from {', '.join(STUDENTS[args.student])}"
        )
    datasets = os.environ.get("DETECTRON2_DATASETS") or ROOT / "datasets"
    os.environ["DETECTRON2_DATASETS"] = str(Path(datasets).expanduser().absolute())
    os.chdir(ROOT)
    try:
        if not args.seeds:  # needed at the end
            import_package("onnx")
            import_package("onnxruntime")
        make_data()
        tables = {}
        for family in args.families:
            pair = family, args.student
            output_of(*pair).mkdir(parents=True, exist_ok=True)
            tables[family] = several_seeds(*pair, args.seeds) if args.seeds else one_seed(*pair, 0)
        for family, table in tables.items():
            print(f"\n{family}\n\n{table}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
