import logging
import os

# Tests run in several processes (see the Makefile), and so do many of their subjects: one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def loggers():
    """Restore the loggers that train_net.py sets up, since other tests rely on them."""
    loggers = [logging.getLogger(name) for name in ("clockdistill", "detectron2", "fvcore")]
    saved = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, saved, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory for experiments, with the configs and a train_net.py that finishes at once."""
    # some tests call pytest without tools/ on the path
    import experiment_matrix
    import experiments
    from helpers.documents import ROOT
    from helpers.experiments import TRAIN_NET

    (tmp_path / "projects/CLoCKDistill").mkdir(parents=True)
    (tmp_path / experiment_matrix.CONFIGS).symlink_to(ROOT / experiment_matrix.CONFIGS)
    (tmp_path / experiment_matrix.TRAIN_NET).write_text(TRAIN_NET)
    for name in ("calls", "failing", "waiting"):
        (tmp_path / name).touch()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/results.md").write_text("# Results\n<!-- toy -->\nold\n<!-- end of toy -->\nThe end\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "POLL_SECONDS", 0.01)
    return tmp_path
