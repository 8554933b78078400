#!/usr/bin/env python
"""Kill small trainings many times and compare them with one that was left alone.

tools/kill_and_resume.py                                  100 kills with one process, 100 with two
tools/kill_and_resume.py --processes 2 --kills 20         fewer

The distillation of the demo's DINO, made smaller, with augmentation, two data workers per process, averaged weights,
evaluations, and a checkpoint after every third iteration, is killed with SIGKILL at random moments and resumed.
Weights, optimizer state and metrics must be equal to the bit, and every iteration must be logged once. The exit status
is 1 if they are not.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from tabulate import tabulate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from clockdistill.engine.arguments import natural
from clockdistill.engine.metrics import TIMES

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "projects/CLoCKDistill/configs/dino/dino_r18_small_to_tiny_street.py"
ITERATIONS = 160
OVERRIDES = [
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=2",
    "model.num_queries=30",
    "train.init_checkpoint=''",
    f"train.max_iter={ITERATIONS}",
    "train.log_period=4",
    "train.eval_period=32",
    "train.checkpointer.period=3",
    "train.checkpointer.max_to_keep=2",
    "train.ema.enabled=True",
    "distillation.gradient_share_period=10",
]


def train(output: str, rank: int, processes: int, port: int) -> None:
    """Run train_net.py in one of the processes, as torchrun does."""
    os.setsid()  # a process group of its own, which is killed with its data workers
    with open(f"{output}.log", "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for the data workers, as in a training
    import train_net

    if processes > 1:
        group = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes, LOCAL_WORLD_SIZE=processes)
        os.environ.update({key: str(value) for key, value in group.items()}, MASTER_ADDR="localhost")
        os.environ["MASTER_PORT"] = str(port)
    arguments = ["--config-file", str(CONFIG), "--resume", *OVERRIDES, f"train.output_dir={output}"]
    sys.exit(train_net.run(train_net.main, train_net.parse_args(arguments)))


def start(context: multiprocessing.context.BaseContext, output: Path, processes: int) -> list:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = [context.Process(target=train, args=(str(output), rank, processes, port)) for rank in range(processes)]
    for rank in ranks:
        rank.start()
    return ranks


def finish(ranks: list, output: Path) -> float:
    """Wait for the processes, and return the seconds that they took."""
    begin = time.monotonic()
    for rank in ranks:
        rank.join()
        if rank.exitcode:
            sys.exit(f"error: the training failed: see {output}.log")
    return time.monotonic() - begin


def kill(ranks: list) -> None:
    for rank in ranks:
        try:
            os.killpg(rank.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group yet, or has ended
            rank.kill()
    for rank in ranks:
        rank.join()


def phase(output: Path) -> str:
    """Say what a killed run was doing, by the files that it left."""
    names = {path.name for path in output.glob("*")}
    if any(name.endswith(".tmp") for name in names):
        return "writing a file"
    if "model_final.pth" in names:
        return "in the final evaluation"
    return "in training" if "last_checkpoint" in names else "before the first checkpoint"


def run_with_kills(
    context: multiprocessing.context.BaseContext, output: Path, whole: Path, processes: int, args: argparse.Namespace
) -> tuple[Counter, list[str]]:
    """Kill trainings at random moments until all kills are used up, and compare each with the one left alone.

    Returns:
        What the killed runs were doing, and what differs.
    """
    rng = random.Random(args.seed)
    phases, found = Counter(), []
    bar = tqdm(total=args.kills, desc=f"{processes} process(es), kills")
    while bar.n < args.kills:
        shutil.rmtree(output, ignore_errors=True)
        while bar.n < args.kills:
            ranks = start(context, output, processes)
            time.sleep(rng.uniform(0, args.seconds))
            if any(rank.exitcode for rank in ranks):
                sys.exit(f"error: the training failed: see {output}.log")
            ended = [rank for rank in ranks if rank.exitcode == 0]
            kill(ranks)
            if ended:
                break
            phases[phase(output)] += 1
            bar.update()
        finish(start(context, output, processes), output)
        found += differences(output, whole)
    return phases, found


def metrics(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def events(output: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(output), size_guidance=dict(scalars=0))
    accumulator.Reload()
    names = set(accumulator.Tags()["scalars"]) - TIMES
    return {name: [(event.step, event.value) for event in accumulator.Scalars(name)] for name in names}


def leaves(state: object, name: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield the dotted name and the bytes of each tensor or value in a checkpoint, without times."""
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        for key, value in items:
            if key not in TIMES:
                yield from leaves(value, f"{name}.{key}")
    elif isinstance(state, torch.Tensor):
        yield name, state.contiguous().numpy().tobytes()
    else:
        yield name, repr(state).encode()


def differences(killed: Path, whole: Path) -> list[str]:
    """List what differs between two runs."""
    found = []
    last = f"model_{ITERATIONS - 1:07d}"
    for name in ("model_final.pth", f"{last}.pth", f"{last}.resume.pth"):
        a, b = (dict(leaves(torch.load(folder / name, weights_only=True))) for folder in (killed, whole))
        unequal = [key for key in a.keys() | b.keys() if a.get(key) != b.get(key)]
        if unequal:
            found.append(f"{name}: {len(unequal)} of {len(b)} values, such as {unequal[0]}")
    if repr(metrics(killed)) != repr(metrics(whole)):
        found.append("metrics.json")
    if repr(sorted(events(killed).items())) != repr(sorted(events(whole).items())):
        found.append("TensorBoard's events")
    kept = {path.name for path in whole.glob("model_*")} ^ {path.name for path in killed.glob("model_*")}
    if kept:
        found.append(f"checkpoints: {', '.join(sorted(kept))}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=natural, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--kills", type=natural, default=100, help="for each number of processes (default: 100)")
    parser.add_argument("--seconds", type=float, default=8, help="longest time until a kill (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--keep", metavar="DIR", help="write the runs to this folder, and keep it")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT / "projects/CLoCKDistill"), str(ROOT / "tools")]
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    os.environ.update(OMP_NUM_THREADS="1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_net", "torch.utils.tensorboard"])  # or each start would take seconds

    folder = Path(args.keep or tempfile.mkdtemp(prefix="kill_and_resume_"))
    data = folder / "data"
    os.environ["DETECTRON2_DATASETS"] = str(data)
    if not data.exists():
        command = [sys.executable, str(ROOT / "datasets/make_street_scenes.py"), "--root", str(data / "street_scenes")]
        subprocess.run([*command, "--train", "24", "--val", "4"], check=True)
    rows, status = [], 0
    for processes in args.processes:
        whole, killed = folder / f"whole{processes}", folder / f"killed{processes}"
        for output in (whole, killed):
            shutil.rmtree(output, ignore_errors=True)
        seconds = finish(start(context, whole, processes), whole)
        phases, found = run_with_kills(context, killed, whole, processes, args)
        status |= bool(found)
        counts = ", ".join(f"{count} {name}" for name, count in phases.most_common())
        print(f"{processes} process(es): {'; '.join(found) or 'no differences'}")
        rows.append([processes, f"{seconds:.0f} s", args.kills, counts, "; ".join(found) or "none"])
    header = ["processes", "undisturbed", "kills", "moments", "differences"]
    print(tabulate(rows, header, tablefmt="pipe"))
    if not args.keep:
        shutil.rmtree(folder)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
