#!/usr/bin/env python
"""Train a matrix of methods, families and seeds, and compare them.

tools/experiments.py run tools/matrices/street.py --jobs 2                  train missing runs, resume stopped ones
tools/experiments.py run tools/matrices/street.py --only method=fgd seed=0  only some of them
tools/experiments.py status tools/matrices/street.py                        AP of finished runs, and the time left
tools/experiments.py report tools/matrices/street.py                        write tables, JSON and a chart
tools/experiments.py tune tools/matrices/street.py                          choose each method's weights

Each run is one call of train_net.py, in output/experiments. As in training, datasets are in $DETECTRON2_DATASETS. A
report is docs/results.md for matrices in tools/matrices, and results.md next to the file for any other.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tabulate import tabulate

from clockdistill.engine.arguments import natural
from clockdistill.errors import UserError
from clockdistill.evaluation.results import write_json
from experiment_matrix import (
    FACTORS,
    MATRICES,
    RECORD,
    TRAIN_NET,
    Run,
    check_runs,
    load_matrix,
    read_json,
    runs_of,
    tuning_runs,
    with_teachers,
)
from experiment_report import PAGE, write_report, write_summary

ROOT = Path(__file__).resolve().parents[1]
CONSOLE = "console.txt"  # what train_net.py prints
POLL_SECONDS = 0.5

START = time.monotonic()


def clock(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60}:{minutes % 60:02d}"


def announce(text: str) -> None:
    print(f"[{clock(time.monotonic() - START)}] {text}", flush=True)


def execute(runs: Sequence[Run], jobs: int) -> list[Run]:
    """Train the runs that are not done, `jobs` at a time, and return those that failed or whose teacher failed.

    If this process is stopped, the runs save a checkpoint, from which the next call resumes them.
    """
    runs = with_teachers(runs)
    waiting, failed = [run for run in runs if not run.is_done], []
    running: dict[Run, tuple[subprocess.Popen, float]] = {}
    commit = current_commit()
    announce(f"{len(runs) - len(waiting)} of {len(runs)} runs are done{left(runs, jobs)}")
    try:
        while waiting or running:
            for run in [run for run in waiting if run.teacher in failed]:
                waiting.remove(run)
                failed.append(run)
                announce(f"{run}: not started, because its teacher failed")
            ready = [run for run in waiting if not run.teacher or run.teacher.is_done]
            for run in ready[: jobs - len(running)]:
                waiting.remove(run)
                running[run] = start(run, jobs, commit), time.monotonic()
            for run, (process, begin) in list(running.items()):
                if process.poll() is not None:
                    del running[run]
                    finish(run, process.returncode, time.monotonic() - begin)
                    if not run.is_done:
                        failed.append(run)
                    announce(f"{run}: {outcome(run)}{left(runs, jobs)}")
            time.sleep(POLL_SECONDS)
    finally:
        for process, _ in running.values():
            process.terminate()
        for run, (process, begin) in running.items():
            finish(run, process.wait(), time.monotonic() - begin)
            announce(f"{run}: {outcome(run) if run.is_done else f'stopped at {run.progress:.0%}'}")
    return failed


def start(run: Run, jobs: int, commit: str) -> subprocess.Popen:
    run.folder.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    seconds = run.record.get("seconds", 0.0)
    record = dict(command=run.command, commit=commit, device=device, seconds=seconds, done=False)
    write_json(record, run.folder / RECORD)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with open(run.folder / CONSOLE, "w", encoding="utf-8") as console:
        return subprocess.Popen(
            [sys.executable, TRAIN_NET, *run.arguments],
            stdout=console,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(threads)} | os.environ,
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops the runs
        )


def finish(run: Run, status: int, seconds: float) -> None:
    """Record the time of a run that has ended, and, if it is done, remove what it would be resumed from."""
    record = run.record
    record.update(seconds=record["seconds"] + seconds, done=status == 0)
    write_json(record, run.folder / RECORD)
    if record["done"]:
        for checkpoint in run.folder.glob("model_[0-9]*.pth"):
            checkpoint.unlink()


def outcome(run: Run) -> str:
    if run.is_done:
        return f"AP {run.metrics['AP'] or 0:.1f}, {run.record['seconds'] / 60:.1f} minutes"
    printed = (run.folder / CONSOLE).read_text(encoding="utf-8", errors="replace").splitlines()
    return f"failed, see {run.folder / CONSOLE}: {printed[-1] if printed else 'it printed nothing'}"


def current_commit() -> str:
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    except FileNotFoundError:  # git is not installed
        return "unknown"
    return git.stdout.strip() or "unknown"


def seconds_left(runs: Sequence[Run], jobs: int) -> float | None:
    """Estimate how long the missing runs take from similar runs that are done; None if none is done."""
    done = [run for run in runs if run.is_done]
    if not done:
        return None

    def speed(run: Run) -> float:
        """Seconds per iteration."""
        alike = [other for other in done if (other.data, other.cell, other.method) == (run.data, run.cell, run.method)]
        alike = alike or [other for other in done if (other.data, other.cell) == (run.data, run.cell)] or done
        return sum(other.record["seconds"] for other in alike) / sum(other.iterations for other in alike)

    return sum(speed(run) * run.iterations * (1 - run.progress) for run in runs) / jobs


def left(runs: Sequence[Run], jobs: int) -> str:
    seconds = seconds_left(runs, jobs)
    remaining = sum(not run.is_done for run in runs)
    return f"; {remaining} left{'' if seconds is None else f', about {clock(seconds)} h'}" if remaining else ""


def status_table(runs: Sequence[Run]) -> str:
    """Show the AP of each run that is done, and the progress of each that was started."""
    seeds = sorted({run.seed for run in runs})
    rows: dict[tuple, dict[int, str]] = {}
    for run in runs:
        state = f"{run.metrics['AP'] or 0:.1f}" if run.is_done else f"{run.progress:.0%}" if run.record else ""
        rows.setdefault((run.data, run.cell, run.method), {})[run.seed] = state
    cells = [[*key, *(states.get(seed, "") for seed in seeds)] for key, states in rows.items()]
    headers = ["data", "family", "method", *(f"seed {seed}" for seed in seeds)]
    return tabulate(cells, headers, tablefmt="pipe", disable_numparse=True)


def next_trials(runs: Sequence[Run]) -> list[Run]:
    """Return the trials that come next, given a method's four in the order of their factors.

    All methods get three trials: with the two factors in the middle, then with the one beyond the better of these.
    """
    lowest, low, high, highest = runs
    if not (low.is_done and high.is_done):
        return [low, high]
    return [lowest if (low.metrics["AP"] or 0) > (high.metrics["AP"] or 0) else highest]


def tune(runs: Sequence[Run], jobs: int) -> list[Run]:
    """Run the trials of all methods, and return those that failed."""
    methods: dict[tuple, list[Run]] = {}
    for run in runs:
        methods.setdefault((run.data, method_of(run)), []).append(run)
    for _ in range(2):
        if failed := execute([trial for trials in methods.values() for trial in next_trials(trials)], jobs):
            return failed
    return []


def method_of(trial: Run) -> str:
    return trial.method.rpartition(" x")[0]


def choose_factors(runs: Sequence[Run]) -> dict[str, dict]:
    """Return each method's factor with the highest AP, and the AP of all its trials, by the method's name."""
    trials: dict[str, dict[float, float]] = {}
    for run in runs:
        if run.is_done:
            trials.setdefault(method_of(run), {})[run.factor] = run.metrics["AP"] or 0.0
    return {method: dict(factor=max(ap, key=ap.get), AP=ap) for method, ap in trials.items()}


def read_factors() -> dict[str, dict]:
    return read_json(FACTORS) if FACTORS.is_file() else {}


def select(runs: Sequence[Run], only: Sequence[tuple[str, str]]) -> list[Run]:
    """Return the runs that have, for each key given, one of its values."""

    def matches(run: Run, key: str) -> bool:
        value = str(getattr(run, key)).partition(" x")[0]
        return (key, value) in only

    selected = [run for run in runs if all(matches(run, key) for key, _ in only)]
    if not selected:
        wanted = " ".join(map("=".join, only))
        known = {key: ", ".join(dict.fromkeys(str(getattr(run, key)) for run in runs)) for key, _ in only}
        choices = "; ".join(f"{key} may be {values}" for key, values in known.items())
        raise UserError(f"no run has {wanted}: {choices}")
    return selected


def condition(text: str) -> tuple[str, str]:
    """`cell=…`, `method=…` or `seed=…`."""
    parts = re.fullmatch("(cell|method|seed)=(.+)", text)
    if not parts:
        raise argparse.ArgumentTypeError(f"{text} is not cell=NAME, method=NAME or seed=NUMBER")
    return parts[1], parts[2]


def report_folder(matrices: Sequence[dict]) -> Path:
    """Return the folder for the results of matrices: `docs` for those in `tools/matrices`, else that of their files.

    Raises:
        UserError: the matrices are in different folders.
    """
    folders = list(dict.fromkeys(Path(matrix["folder"]) for matrix in matrices))
    if len(folders) > 1:
        raise UserError(f"one report cannot have matrices of {folders[0]} and {folders[1]}: write one for each")
    return Path("docs") if folders == [MATRICES.resolve()] else folders[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="run | status | report | tune")
    for name in ("run", "status", "report", "tune"):
        command = commands.add_parser(name)
        command.add_argument(
            "matrices", nargs="+", type=Path, metavar="MATRIX", help="file such as those in tools/matrices"
        )
        if name != "report":
            command.add_argument("--jobs", type=natural, default=2, help="runs at a time (default: %(default)s)")
            command.add_argument(
                "--only", nargs="+", type=condition, default=[], metavar="KEY=VALUE", help="cell, method or seed"
            )
    args = parser.parse_args()
    paths = [str(path.absolute()) for path in args.matrices]
    datasets = os.environ.get("DETECTRON2_DATASETS") or ROOT / "datasets"
    os.environ["DETECTRON2_DATASETS"] = str(Path(datasets).expanduser().absolute())
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return act(args, [load_matrix(path) for path in paths])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def act(args: argparse.Namespace, matrices: Sequence[dict]) -> int:
    """Carry out a command and return the exit status."""
    factors = {method: chosen["factor"] for method, chosen in read_factors().items()}
    if args.command == "report":
        folder = report_folder(matrices)
        for matrix in matrices:
            print(write_report(matrix, runs_of(matrix, factors), folder), end="\n\n")
        print(f"{write_summary(matrices, folder)}\n\nreport: {folder / PAGE}")
        return 0
    tuning = args.command == "tune"
    runs = [run for matrix in matrices for run in (tuning_runs(matrix) if tuning else runs_of(matrix, factors))]
    runs = select(runs, args.only)
    check_runs(with_teachers(runs))
    if args.command == "status":
        runs = with_teachers(runs)
        print(f"{status_table(runs)}\n\n{len(runs)} runs{left(runs, args.jobs)}")
        return 0
    if failed := (tune if tuning else execute)(runs, args.jobs):
        print("error: these runs failed: " + ", ".join(map(str, failed)), file=sys.stderr)
        return 1
    if tuning:
        chosen = choose_factors(runs)
        write_json(dict(sorted((read_factors() | chosen).items())), FACTORS)
        print(tabulate([(m, c["factor"]) for m, c in chosen.items()], ["method", "factor"], tablefmt="pipe"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
