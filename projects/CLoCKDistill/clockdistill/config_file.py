"""LazyConfig files, with an answer for every way in which one can be wrong."""

import os
import traceback

from detectron2.config import LazyConfig
from omegaconf import DictConfig

from .errors import UserError


def execute_config(path: str) -> DictConfig:
    """The names that a LazyConfig file, `.py` or `.yaml`, defines.

    Raises:
        UserError: there is no such file, or it does not execute.
    """
    if not path:
        raise UserError("no config is given: name one with --config-file")
    if not os.path.isfile(path):
        raise UserError(f"config file {path} does not exist: look for its name in projects/CLoCKDistill/configs")
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
