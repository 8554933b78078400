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
