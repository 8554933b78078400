"""Trainings as real processes: stopped, killed, without space, side by side, and on several processes."""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers.toy import read_lines

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "tests/helpers/toy_config.py"
TRAIN_NET = ROOT / "projects/CLoCKDistill/train_net.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
ENDLESS = ("train.max_iter=100000", "train.checkpointer.period=100000", "dataloader.train.seconds=0.05")
TIMEOUT = 120


@pytest.fixture(autouse=True)
def heeded_sigint():
    """A shell starts background jobs with SIGINT ignored, and a training would inherit that."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def started(folder, *arguments, launcher=(), **options):
    """A running train_net.py with its output in `folder`/out, which is killed on exit."""
    flags = [text for text in arguments if text.startswith("--") or "=" not in text]
    overrides = [text for text in arguments if text not in flags]
    command = [sys.executable, *launcher, str(TRAIN_NET), "--config-file", str(CONFIG), *flags]
    command += [f"train.output_dir={folder / 'out'}", *overrides]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, **pipes, **options) as process:
        try:
            yield process
        finally:
            for pid in (*descendants(process.pid), process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def finish(process, status=0):
    """Wait for a process and return all that it printed."""
    printed, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == status, printed
    return printed


def run(folder, *arguments, status=0, **options):
    with started(folder, *arguments, **options) as process:
        return finish(process, status)


def wait_for(condition, process):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read(path):
    return path.read_text() if path.is_file() else ""


def iterations(folder):
    return [json.loads(line)["iteration"] for line in read(folder / "out/metrics.json").splitlines()]


def last_iteration(folder):
    name = (folder / "out/last_checkpoint").read_text()
    return torch.load(folder / "out" / name, weights_only=True)["iteration"]


def rank_of(pid):
    """LOCAL_RANK in the environment of a process, or None."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"LOCAL_RANK="):
                return int(entry.partition(b"=")[2])
    return None


def children(pid):
    return [int(child) for child in read(Path(f"/proc/{pid}/task/{pid}/children")).split()]


def descendants(pid):
    return [found for child in children(pid) for found in (*descendants(child), child)]


@pytest.mark.parametrize(
    ("number", "status", "flags"),
    [
        (signal.SIGTERM, 143, ()),
        (signal.SIGINT, 130, ()),
        (signal.SIGUSR1, 138, ()),
        (signal.SIGTERM, 143, ("--num-gpus=2",)),
    ],
    ids=["SIGTERM", "SIGINT", "SIGUSR1", "SIGTERM with two processes"],
)
def test_a_signal_stops_after_the_step_with_a_checkpoint(tmp_path, number, status, flags):
    with started(tmp_path, *flags, *ENDLESS) as process:
        wait_for(lambda: len(iterations(tmp_path)) > 3, process)
        process.send_signal(number)
        printed = finish(process, status)
    last = last_iteration(tmp_path)
    assert last >= 3
    lines = [line for line in printed.splitlines() if "Stopped by " in line]
    assert len(lines) == 1
    assert f"Stopped by {number.name} after iteration {last}, saved in " in lines[0]
    assert "Traceback" not in printed
    assert not list((tmp_path / "out").glob("*.tmp"))
    if number == signal.SIGTERM:
        run(tmp_path, *flags, *ENDLESS, f"train.max_iter={last + 3}", "--resume")
        assert iterations(tmp_path) == list(range(last + 4))


def test_a_signal_stops_an_evaluation_at_once_and_resume_repeats_it(tmp_path):
    evaluate = ("train.eval_period=4", "train.log_period=1")
    with started(tmp_path, *ENDLESS, *evaluate, "dataloader.test.seconds=60") as process:
        wait_for(lambda: "Start inference" in read(tmp_path / "out/log.txt"), process)
        begin = time.monotonic()
        process.terminate()
        printed = finish(process, 143)
    assert time.monotonic() - begin < 30
    assert "Stopped by SIGTERM after iteration 3, saved in " in printed
    run(tmp_path, *ENDLESS, *evaluate, "train.max_iter=5", "--resume")
    assert iterations(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert "bbox/AP" in read_lines(tmp_path / "out")[3]


def test_a_second_training_is_refused_until_the_first_is_gone(tmp_path):
    with started(tmp_path, *ENDLESS, "train.checkpointer.period=1") as process:
        wait_for(lambda: (tmp_path / "out/last_checkpoint").exists(), process)
        before = (tmp_path / "out/config.yaml").read_bytes()
        printed = run(tmp_path, *ENDLESS, "train.seed=7", "--resume", status=1)
        assert f"is in use by another training (process {process.pid} on " in printed.splitlines()[-1]
        assert (tmp_path / "out/config.yaml").read_bytes() == before
        process.kill()
        process.wait()
    run(tmp_path, f"train.max_iter={last_iteration(tmp_path) + 2}", "--resume")


def test_a_new_training_does_not_replace_an_earlier_one(tmp_path):
    run(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != "train.lock"}
    assert "has the checkpoint of an earlier training: add --resume" in run(tmp_path, status=1)
    assert {path: (tmp_path / "out" / path.name).read_bytes() for path in before} == before


def test_a_full_disk_ends_in_a_sentence_and_loses_nothing(tmp_path):
    """A limit on the size of files stands for the full disk; checkpoints exceed it, logs do not."""
    large = ("model.channels=5000", "train.checkpointer.period=2")
    run(tmp_path, *large, "train.max_iter=3")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("model_*")}

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    printed = run(tmp_path, *large, "--resume", status=1, preexec_fn=limit)
    errors = [line for line in printed.splitlines() if "cannot write" in line]
    assert "model_0000003.resume.pth: File too large; free some space" in errors[0]
    assert errors[0].endswith("the training goes on until the next checkpoint")
    assert errors[-1].startswith("error: cannot write ")
    assert errors[-1].endswith("--resume continues from " + str(tmp_path / "out/model_0000002.pth"))
    assert "Traceback" not in printed
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("model_*")} == before
    run(tmp_path, *large, "--resume")
    assert last_iteration(tmp_path) == 5


def test_a_training_that_diverges_ends_with_a_checkpoint_from_before(tmp_path):
    options = ("train.max_iter=100", "train.checkpointer.period=1", "dataloader.train.broken_from=3")
    printed = run(tmp_path, *options, status=1)
    assert printed.count("Skipped iteration ") == 9
    assert printed.splitlines()[-1] == (
        "error: the loss became NaN or infinite in iterations 3 to 12 (loss_square, loss_abs): lower optimizer.lr"
    )
    assert last_iteration(tmp_path) == 2


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def test_torchrun_and_two_machines_equal_two_processes(tmp_path):
    run(tmp_path / "processes", "--num-gpus=2")
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}")
    run(tmp_path / "torchrun", launcher=torchrun)
    machines = ("--num-machines=2", f"--dist-url=tcp://127.0.0.1:{free_port()}")
    with started(tmp_path / "machines", *machines, "--machine-rank=1") as second:
        run(tmp_path / "machines", *machines, "--machine-rank=0")
        finish(second)
    expected = read_lines(tmp_path / "processes/out")
    assert len(expected) == 7
    for way in ("torchrun", "machines"):
        assert repr(read_lines(tmp_path / way / "out")) == repr(expected)


def test_torchrun_brings_a_training_with_a_killed_process_back(tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", f"--master-port={free_port()}")
    options = ("train.max_iter=60", "train.checkpointer.period=5", "dataloader.train.seconds=0.05")
    with started(tmp_path, *options, launcher=torchrun) as process:
        wait_for(lambda: len(iterations(tmp_path)) > 12, process)
        (victim,) = (child for child in children(process.pid) if rank_of(child) == 1)
        os.kill(victim, signal.SIGKILL)
        printed = finish(process)
    assert re.search(r"Starting training from iteration [1-9]", printed)
    assert iterations(tmp_path) == list(range(61))


def test_a_killed_process_ends_the_others(tmp_path):
    with started(tmp_path, *ENDLESS, "--num-gpus=2") as process:
        wait_for(lambda: len(iterations(tmp_path)) > 3, process)
        workers = [pid for pid in children(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        begin = time.monotonic()
        os.kill(workers[1], signal.SIGKILL)
        printed = finish(process, 1)
    assert time.monotonic() - begin < 30
    assert not Path(f"/proc/{workers[0]}").exists()
    assert "was ended by SIGKILL (the machine may be out of memory): continue with --resume" in printed.splitlines()[-1]
