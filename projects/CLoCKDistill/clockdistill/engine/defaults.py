"""Launch of an entry point: processes, devices, logs, seeds, and error messages."""

import argparse
import logging
import re
import sys
from collections.abc import Callable

import torch
from detectron2.engine import default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch.multiprocessing import ProcessRaisedException

from ..errors import UserError
from ..layers import extension

# errors whose message is all that a user needs; they are printed without a traceback
USER_ERRORS = (UserError, FloatingPointError)
LAST_LINE = re.compile(r"^(?:clockdistill\.errors\.UserError|FloatingPointError): (.+)\s*\Z", re.MULTILINE)

logger = logging.getLogger(__name__)


def run(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run an entry point in one process per GPU, and print user errors in one sentence.

    Args:
        main: called in every process.
        args: from Detectron2's `default_argument_parser`.

    Returns:
        The exit status.
    """
    try:
        available = torch.cuda.device_count()
        if available and args.num_gpus > available:
            raise UserError(f"--num-gpus is {args.num_gpus}, but this machine has {available}")
        launch(
            run_and_synchronize,
            max(args.num_gpus, 1),
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )
    except KeyboardInterrupt:
        hint = ": use --resume to continue from the last checkpoint" if hasattr(args, "resume") else ""
        print(f"interrupted{hint}", file=sys.stderr)
        return 130
    except (*USER_ERRORS, ProcessRaisedException) as error:
        sentence = error_sentence(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 1
    return 0


def run_and_synchronize(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run an entry point and wait for all processes: one that exits early would terminate the others."""
    main(args)
    if comm.get_world_size() > 1:
        comm.synchronize()
        torch.distributed.destroy_process_group()


def error_sentence(error: Exception) -> str | None:
    """Return the message of a user error, or None for any other error.

    Errors of data workers and other ranks arrive as the text of their traceback, whose last line is the message.
    """
    last_line = LAST_LINE.search(str(error))
    if last_line:
        return last_line[1]
    return str(error) if isinstance(error, USER_ERRORS) else None


def setup(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Call Detectron2's `default_setup` (output folder, logs, seeds, config file) and choose the device."""
    fallback = cfg.train.device != "cpu" and (args.num_gpus == 0 or not torch.cuda.is_available())
    if fallback:
        cfg.train.device = "cpu"
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
