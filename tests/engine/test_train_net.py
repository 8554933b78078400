"""Exit status and last words of train_net.py, as a user sees them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clockdistill.engine.launch import error_sentence
from clockdistill.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "tests/helpers/toy_config.py"


def train_net(tmp_path, *args):
    return subprocess.run(
        [sys.executable, str(ROOT / "projects/CLoCKDistill/train_net.py"), "--config-file", str(CONFIG), *args],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["train.max_iters=3"], "error: unknown config key train.max_iters: did you mean train.max_iter or "),
        (
            ["dataloader.train={_target_: helpers.toy.broken_loader, num_workers: 1}"],
            "error: label file 000003.txt, line 2: fifteen fields are needed",
        ),
        (
            ["--num-gpus", "2", "--dist-url", "auto", "dataloader.train.broken_at=1", "train.max_nonfinite_steps=1"],
            "error: the loss became NaN or infinite at iteration 1 (loss_square, loss_abs): lower optimizer.lr",
        ),
    ],
    ids=["config", "data worker", "two processes"],
)
def test_errors_are_one_sentence(tmp_path, args, sentence):
    flags = [x for i, x in enumerate(args) if x.startswith("--") or (i and args[i - 1].startswith("--"))]
    done = train_net(tmp_path, *flags, "train.output_dir=out", *args[len(flags) :])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(sentence)
    assert "Traceback" not in done.stdout + done.stderr


def test_training_from_another_folder(tmp_path):
    done = train_net(tmp_path, "train.output_dir=out")
    assert done.returncode == 0, done.stderr
    assert "Running on the CPU" in done.stdout
    assert {
        "model_final.pth",
        "model_0000005.resume.pth",
        "metrics.json",
        "results.json",
        "config.yaml",
        "log.txt",
    } <= {path.name for path in (tmp_path / "out").iterdir()}
    assert list((tmp_path / "out").glob("events.out.tfevents.*"))


def test_sentence_of_an_error():
    worker = (
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in f\nclockdistill.errors.UserError: image a.png cannot be read\n'
    )
    rank = f"\n\n-- Process 1 terminated with the following error:\nTraceback:\nclockdistill.errors.UserError: {worker}"
    assert error_sentence(UserError(worker)) == "image a.png cannot be read"
    assert error_sentence(RuntimeError(rank)) == "image a.png cannot be read"
    assert error_sentence(UserError("give a config")) == "give a config"
    assert error_sentence(RuntimeError(worker + "RuntimeError: out of memory")) is None
