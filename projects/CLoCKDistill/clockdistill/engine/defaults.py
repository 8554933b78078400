"""Set-up of an entry point: output folder, device, logs, seeds."""

import argparse
import logging

import torch
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from ..layers import extension
from .launch import USER_ERRORS
from .output_dir import make_output_dir

logger = logging.getLogger(__name__)


def setup(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Call Detectron2's `default_setup` (output folder, logs, seeds, config file) and choose the device."""
    fallback = cfg.train.device != "cpu" and (args.num_gpus == 0 or not torch.cuda.is_available())
    if fallback:
        cfg.train.device = "cpu"
    make_output_dir(cfg.train.output_dir)
    # a full disk must not fill the terminal with tracebacks of log.txt
    logging.raiseExceptions = False
    name = "clockdistill"
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name=name, abbrev_name=name)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_not_user_error)
    default_setup(cfg, args)
    if fallback:
        reason = "--num-gpus is 0" if args.num_gpus == 0 else "no GPU is present"
        logger.info(f"Running on the CPU: {reason}.")
    extension.log_backend(torch.device(cfg.train.device).type)


def _is_not_user_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], USER_ERRORS))
