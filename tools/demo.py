#!/usr/bin/env python
"""The method in under ten minutes on two cores; `make demo` runs it.

tools/demo.py                  one seed: a table, results.json, curves.png and comparison_*.png in output/demo/dino
tools/demo.py --seeds 0 1 2    the same pair of trainings for every seed: a table and output/demo/dino/seeds.json
tools/demo.py --families dino deformable_detr dab_detr --seeds 0 1 2    the same for each family
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

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

import clockdistill.data  # noqa: F401  its import registers the data sets
from clockdistill.engine import load_config, load_model
from clockdistill.errors import UserError
from clockdistill.evaluation.pictures import plot_curves, save_comparisons
from clockdistill.evaluation.results import comparison_table, write_json

# Everything below is relative to the repository, which the demo makes its working directory.
ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("dino", "deformable_detr", "dab_detr")
CONFIG = "projects/CLoCKDistill/configs/{0}/{0}_{1}_street.py"
BACKBONES = {"teacher": "r18_small", "student": "r18_tiny", "distilled": "r18_small_to_tiny"}
TEACHER_CHECKPOINT = "projects/CLoCKDistill/demo/{0}_r18_small_street.pth"
OUTPUT = Path("output/demo")

TRAIN_IMAGES, VAL_IMAGES, DATA_SEED = 800, 200, 0
PICTURES = 4
MIN_OBJECTS = 4  # in a validation image that is worth a picture

PAIR = ("student", "distilled")
TITLES = {"student": "Student", "distilled": "Distilled student", "teacher": "Teacher"}
PROGRESS = re.compile(r"eta: .+?(?=  \w*loss_)")  # of Detectron2's line of progress: without the single losses
PROGRESS_PERIOD = 10  # seconds

START = time.monotonic()


def announce(text: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - START), 60)
    print(f"[{minutes}:{seconds:02d}] {text}", flush=True)


def config_of(family: str, name: str) -> str:
    return CONFIG.format(family, BACKBONES[name])


def make_data() -> None:
    root = Path(os.environ["DETECTRON2_DATASETS"], "street_scenes")
    announce(f"Data: {TRAIN_IMAGES} + {VAL_IMAGES} street scenes")
    options = ["--train", str(TRAIN_IMAGES), "--val", str(VAL_IMAGES), "--seed", str(DATA_SEED)]
    if subprocess.run([sys.executable, "datasets/make_street_scenes.py", "--root", str(root), *options]).returncode:
        raise UserError("the street scenes could not be made: the message above says why")


def train_net(
    config: str,
    output_dir: Path,
    *arguments: str,
    name: str = "",
    threads: int | None = None,
    given_up: threading.Event | None = None,
) -> None:
    """Train or evaluate from a clean folder; some lines of its progress are passed on.

    Args:
        config, output_dir, arguments: for train_net.py.
        name: what its progress is shown under.
        threads: to compute with; all cores without it.
        given_up: when it is set the training ends early, with an error.
    """
    shutil.rmtree(output_dir, ignore_errors=True)
    command = [sys.executable, "projects/CLoCKDistill/train_net.py", "--config-file", config, *arguments]
    command.append(f"train.output_dir={output_dir}")
    environment = os.environ if threads is None else os.environ | {"OMP_NUM_THREADS": str(threads)}
    shown = time.monotonic()
    last_lines = deque(maxlen=20)
    # one pipe for all: two progress bars would overwrite one another
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process:
        for line in process.stdout:
            last_lines.append(line)
            progress = PROGRESS.search(line)
            if progress and time.monotonic() - shown > PROGRESS_PERIOD:
                shown = time.monotonic()
                print(f"       {name:{max(map(len, PAIR))}}  {progress[0]}", flush=True)
            if given_up and given_up.is_set():
                process.terminate()
    if process.returncode:
        if not (given_up and given_up.is_set()):
            sys.stderr.writelines(last_lines)
        raise UserError(
            f"train_net.py failed with {config}: the message above or {output_dir}/log.txt says why "
            f"(exit status {process.returncode})"
        )


def train_pair(family: str, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """AP, AP50 and so on of the same student without and with distillation: same seed, data and iterations."""
    announce(f"Training the student of {family} without and with distillation, seed {seed}")
    # side by side on half of the cores each: so small a model keeps one core busier than two
    threads = max(1, (os.cpu_count() or 2) // 2)
    given_up = threading.Event()
    with ThreadPoolExecutor(len(PAIR)) as pool:
        runs = {
            pool.submit(
                train_net,
                config_of(family, name),
                folder / name,
                f"train.seed={seed}",
                name=name,
                threads=threads,
                given_up=given_up,
            ): name
            for name in PAIR
        }
        results = {}
        for run in as_completed(runs):
            try:
                run.result()
            except UserError:
                given_up.set()  # nobody waits for the other to hear of it
                raise
            name = runs[run]
            results[name] = read_json(folder / name / "results.json")["bbox"]
            announce("{}: AP {AP:.1f}, AP50 {AP50:.1f}, AP75 {AP75:.1f}".format(TITLES[name], **results[name]))
    return {name: results[name] for name in PAIR}


def one_seed(family: str, seed: int) -> str:
    """Train, evaluate and draw; the table of results."""
    folder = OUTPUT / family
    for old in (folder / "results.json", folder / "curves.png", *folder.glob("comparison_*.png")):
        old.unlink(missing_ok=True)
    train_pair(family, seed, folder)

    announce("Comparing student, distilled student and teacher")
    teacher, student = config_of(family, "teacher"), config_of(family, "student")
    checkpoints = {name: folder / name / "model_final.pth" for name in PAIR}
    models = {name: f"{student}:{path}" for name, path in checkpoints.items()}
    models["teacher"] = f"{teacher}:{TEACHER_CHECKPOINT.format(family)}"
    compared = [argument for name, model in models.items() for argument in ("--compare", f"{name}={model}")]
    train_net(student, folder / "comparison", "--eval-only", *compared)
    results = read_json(folder / "comparison" / "comparison.json")

    announce("Drawing")
    runs = {TITLES[name]: str(folder / name / "metrics.json") for name in PAIR}
    plot_curves(runs, str(folder / "curves.png"), reference=(TITLES["teacher"], results["teacher"]["bbox"]["AP"]))
    cfgs = {name: load_config(student, [f"train.init_checkpoint={path}"]) for name, path in checkpoints.items()}
    draw_pictures(cfgs["student"], {TITLES[name]: load_model(cfg) for name, cfg in cfgs.items()}, str(folder))

    write_json(results, folder / "results.json")
    announce(f"Done with {family}; results.json, curves.png and comparison_*.png are in {folder.resolve()}")
    return comparison_table({TITLES[name]: result for name, result in results.items()})


def several_seeds(family: str, seeds: list[int]) -> str:
    """Train the pair for every seed; the table of the seeds."""
    folder = OUTPUT / family
    (folder / "seeds.json").unlink(missing_ok=True)
    results = {seed: train_pair(family, seed, folder / f"seed{seed}") for seed in seeds}
    summary = summarise(results)
    write_json(summary, folder / "seeds.json")
    announce(f"Done with {family}; seeds.json is in {folder.resolve()}")
    return seeds_table(summary)


def draw_pictures(cfg: DictConfig, models: dict[str, nn.Module], folder: str) -> None:
    """Validation images at even distances among those with some objects: nobody chose them."""
    inputs, records = instantiate(cfg.dataloader.test).dataset, instantiate(cfg.dataloader.test.dataset)
    objects = [sum(not a.get("iscrowd") for a in record["annotations"]) for record in records]
    worthy = [i for i, count in enumerate(objects) if count >= MIN_OBJECTS]
    chosen = worthy[:: max(1, len(worthy) // PICTURES)][:PICTURES]
    names = MetadataCatalog.get(cfg.dataloader.test.dataset.names).thing_classes
    save_comparisons(models, [inputs[i] for i in chosen], [records[i] for i in chosen], names, folder)


def summarise(results: dict[int, dict[str, dict[str, float]]]) -> dict:
    """The AP of student and distilled student over seeds, their difference, and the mean and spread of each.

    The spread is the sample standard deviation, None for a single seed.
    """
    ap = {name: [pair[name]["AP"] for pair in results.values()] for name in PAIR}
    ap["difference"] = [distilled - student for student, distilled in zip(ap["student"], ap["distilled"], strict=True)]
    mean = {name: statistics.mean(values) for name, values in ap.items()}
    std = {name: statistics.stdev(values) if len(values) > 1 else None for name, values in ap.items()}
    return {"seeds": list(results), "AP": ap, "mean": mean, "std": std}


def seeds_table(summary: dict) -> str:
    columns = ("student", "distilled", "difference")
    signs = ("", "", "+")

    def cells(values: list[float]) -> list[str]:
        return [f"{value:{sign}.1f}" for value, sign in zip(values, signs, strict=True)]

    rows = [[seed, *cells([summary["AP"][name][i] for name in columns])] for i, seed in enumerate(summary["seeds"])]
    spread = ["" if summary["std"][name] is None else f" ± {summary['std'][name]:.1f}" for name in columns]
    means = cells([summary["mean"][name] for name in columns])
    rows.append(["mean ± std", *(mean + std for mean, std in zip(means, spread, strict=True))])
    headers = ["seed", "AP of the student", "AP of the distilled student", "difference"]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=("left", "right", "right", "right"))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="compare over several seeds")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=["dino"], help="dino without it")
    args = parser.parse_args()
    datasets = os.environ.get("DETECTRON2_DATASETS") or ROOT / "datasets"
    os.environ["DETECTRON2_DATASETS"] = str(Path(datasets).expanduser().absolute())
    os.chdir(ROOT)
    try:
        make_data()
        tables = {}
        for family in args.families:
            (OUTPUT / family).mkdir(parents=True, exist_ok=True)
            tables[family] = several_seeds(family, args.seeds) if args.seeds else one_seed(family, 0)
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
