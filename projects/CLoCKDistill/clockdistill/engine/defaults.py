"""What comes before training: processes, devices, logs, seeds; and what is said when it fails."""

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

# Errors that say in one sentence all that their reader needs; a traceback would only hide it.
SPEAKING_ERRORS = (UserError, FloatingPointError)
LAST_LINE = re.compile(r"^(?:clockdistill\.errors\.UserError|FloatingPointError): (.+)\s*\Z", re.MULTILINE)

logger = logging.getLogger(__name__)


def run(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run an entry point in as many processes as its arguments ask for, and report failures in one sentence.

    Args:
        main: what every process runs.
        args: of Detectron2's `default_argument_parser`.

    Returns:
        The exit status.
    """
    try:
        available = torch.cuda.device_count()
        if available and args.num_gpus > available:
            raise UserError(f"--num-gpus {args.num_gpus} is more than there are: this machine has {available}")
        launch(
            leave_together,
            max(args.num_gpus, 1),
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )
    except KeyboardInterrupt:
        print("interrupted: --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (*SPEAKING_ERRORS, ProcessRaisedException) as error:
        sentence = error_sentence(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 1
    return 0


def leave_together(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run an entry point; a process that has less to do waits for the others, which it would tear down with itself."""
    main(args)
    if comm.get_world_size() > 1:
        comm.synchronize()
        torch.distributed.destroy_process_group()


def error_sentence(error: Exception) -> str | None:
    """What an error has to say to the user; None where it is not meant for one.

    Errors of data workers and of other ranks arrive as the text of their traceback: its last line counts.
    """
    last_line = LAST_LINE.search(str(error))
    if last_line:
        return last_line[1]
    return str(error) if isinstance(error, SPEAKING_ERRORS) else None


def setup(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Output folder, logs, seeds, the config as a file, as Detectron2 has them; and the device that there is."""
    fallback = cfg.train.device != "cpu" and (args.num_gpus == 0 or not torch.cuda.is_available())
    if fallback:
        cfg.train.device = "cpu"
    name = "clockdistill"
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name=name, abbrev_name=name)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_has_no_speaking_error)
    default_setup(cfg, args)
    if fallback:
        reason = "--num-gpus is 0" if args.num_gpus == 0 else "no GPU is present"
        logger.info(f"Running on the CPU: {reason}.")
    extension.log_backend(torch.device(cfg.train.device).type)


def _has_no_speaking_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], SPEAKING_ERRORS))
