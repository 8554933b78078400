"""Training, evaluation, checkpoints and configs around Detectron2's engine."""

from .checkpoint import Checkpointer, PeriodicCheckpointer
from .config import apply_overrides, load_config
from .datasets import dataset_names, load_records
from .defaults import setup
from .evaluation import compare, eval_only
from .hooks import EMAHook, ProgressBar
from .launch import run
from .model_spec import ModelSpec, parse_model_specs
from .optim import get_detr_optimizer_params
from .train import do_test, do_train, load_model, load_model_and_metadata, prepare_inference
from .trainer import Trainer

__all__ = [
    "Checkpointer",
    "EMAHook",
    "ModelSpec",
    "PeriodicCheckpointer",
    "ProgressBar",
    "Trainer",
    "apply_overrides",
    "compare",
    "dataset_names",
    "do_test",
    "do_train",
    "eval_only",
    "get_detr_optimizer_params",
    "load_config",
    "load_model",
    "load_model_and_metadata",
    "load_records",
    "parse_model_specs",
    "prepare_inference",
    "run",
    "setup",
]
