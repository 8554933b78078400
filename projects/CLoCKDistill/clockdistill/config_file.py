"""Load LazyConfig files with readable errors."""

import os
import traceback

from detectron2.config import LazyConfig
from omegaconf import DictConfig

from .errors import UserError


def execute_config(path: str) -> DictConfig:
    """Load all config objects from a LazyConfig file, `.py` or `.yaml`.

    Raises:
        UserError: the file does not exist or cannot be executed.
    """
    if not path:
        raise UserError("no config file: pass one with --config-file")
    if not os.path.isfile(path):
        raise UserError(f"config file {path} does not exist: see projects/CLoCKDistill/configs")
    try:
        return LazyConfig.load(path)
    except UserError:
        raise
    except SyntaxError as error:
        cause = error.__cause__ or error
        raise UserError(f"{error.msg} ({cause})") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        place = f"{path}, line {lines[-1]}," if lines else path
        raise UserError(f"config file {place} does not execute: {type(error).__name__}: {error}") from error
