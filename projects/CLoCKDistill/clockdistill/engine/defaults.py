"""Set-up of an entry point: device, seeds, logs, and the output folder.

Nothing is written before the config has been built, so that a wrong command changes no earlier output.
"""

import argparse
import logging
import os
import sys
from logging.handlers import MemoryHandler

from detectron2.config import LazyConfig
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch import cuda, distributed

from ..errors import UserError
from ..layers import extension
from .launch import error_sentence
from .output_dir import LOCK, make_output_dir

LOGGERS = ("clockdistill", "detectron2", "fvcore")

# keeps what is logged until there is a log.txt
_buffer = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)

logger = logging.getLogger(__name__)


def setup(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Choose the device, seed all random number generators, and log to the terminal, like Detectron2's `default_setup`.

    Call `open_output_dir` once the config has been built.
    """
    global _buffer
    fallback = cfg.train.device != "cpu" and (args.num_gpus == 0 or not cuda.is_available())
    if fallback:
        cfg.train.device = "cpu"
    if comm.get_world_size() > 1 and distributed.get_backend() == "nccl" and cfg.train.device != "cuda":
        raise UserError(
            f"train.device={cfg.train.device} does not fit several processes on GPUs: leave it at cuda, or hide the "
            "GPUs with CUDA_VISIBLE_DEVICES="
        )
    rank = comm.get_rank()
    for name in LOGGERS:
        setup_logger(distributed_rank=rank, name=name, abbrev_name=name if name == "clockdistill" else None)
        # Detectron2 sets the level only once in a process
        logging.getLogger(name).setLevel(logging.DEBUG)
        logging.getLogger(name).removeHandler(_buffer)
    _buffer = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(_buffer)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_not_user_error)
    # a full disk must not fill the terminal with tracebacks of log.txt
    logging.raiseExceptions = False

    logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    logger.info(f"Environment:\n{collect_env_info()}")
    logger.info(f"Command line: {args}")
    if fallback:
        reason = "--num-gpus is 0" if args.num_gpus == 0 else "no GPU is present"
        logger.info(f"Running on the CPU: {reason}.")
    extension.log_backend(cfg.train.device)
    seed_all_rng(None if cfg.train.seed < 0 else cfg.train.seed + rank)


def open_output_dir(cfg: DictConfig, keep_config: bool = False) -> None:
    """Create the output folder, with config.yaml and log.txt, or append to an earlier log.txt.

    Args:
        keep_config: if the folder is that of a training, keep the training's config.yaml.

    Raises:
        UserError: it cannot be created or written to.
    """
    output_dir, rank = cfg.train.output_dir, comm.get_rank()
    make_output_dir(output_dir)
    file = logging.FileHandler(os.path.join(output_dir, "log.txt" + (f".rank{rank}" if rank else "")))
    file.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S"))
    _buffer.setTarget(file)
    _buffer.flush()
    # from now on, write each record at once
    _buffer.flushLevel = logging.NOTSET
    keep = keep_config and os.path.exists(os.path.join(output_dir, LOCK))
    if comm.is_main_process() and not keep:
        path = os.path.join(output_dir, "config.yaml")
        LazyConfig.save(cfg, path)
        logger.info(f"Full config saved to {path}")


def _is_not_user_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and error_sentence(record.exc_info[1]) is not None)
