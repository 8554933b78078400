"""Training, evaluation, checkpoints and configs around Detectron2's engine."""

from .benchmark import compare, eval_only
from .checkpoint import Checkpointer, PeriodicCheckpointer
from .config import apply_overrides, load_config
from .defaults import run, setup
from .hooks import EMAHook, ProgressBar
from .named_models import NamedModel, parse_models
from .optim import get_detr_optimizer_params
from .train import do_test, do_train, load_model, load_model_and_metadata
from .trainer import Trainer

__all__ = [
    "Checkpointer",
    "EMAHook",
    "NamedModel",
    "PeriodicCheckpointer",
    "ProgressBar",
    "Trainer",
    "apply_overrides",
    "compare",
    "do_test",
    "do_train",
    "eval_only",
    "get_detr_optimizer_params",
    "load_config",
    "load_model",
    "load_model_and_metadata",
    "parse_models",
    "run",
    "setup",
]
