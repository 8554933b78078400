"""`--eval-only` and `--compare`: the accuracy and cost of one model, or of several side by side."""

import copy
import logging
import os
import re
from collections.abc import Iterable, Sequence
from itertools import chain, islice

import torch
from detectron2.utils import comm
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

from ..errors import UserError
from ..evaluation.cost import MEBI, benchmark, environment
from ..evaluation.results import comparison_table, nan_to_none, write_json
from ..export import SUFFIXES, ExportedDetector
from .config import load_config
from .datasets import build_evaluator, build_test_loader, check_classes, dataset_classes
from .defaults import open_output_dir
from .model_spec import parse_model_specs
from .train import evaluate, load_model_and_metadata, prepare_inference

FOLDER = re.compile(r"\w[\w .+-]*")

logger = logging.getLogger(__name__)


def eval_only(cfg: DictConfig) -> dict:
    """Evaluate the model of a config with the weights of `cfg.train.init_checkpoint`, and measure its cost.

    Returns:
        On the main process the contents of `<output_dir>/results.json`: the evaluators' results by task, `benchmark`
        (see `evaluation.cost.benchmark`) and `environment`.
    """
    return _evaluate(cfg, {"model": cfg})["model"]


def compare(cfg: DictConfig, models: Sequence[str]) -> dict[str, dict]:
    """Evaluate several models on the test set of a config, and log a table with differences from the first.

    Each model's results are written to `<output_dir>/NAME/`, and those of all models to `<output_dir>/comparison.json`.

    Args:
        cfg: the test set, and the number of classes of all models.
        models: NAME=CONFIG:CHECKPOINT each, of which only `model` of the config is used, or NAME=FILE for an exported
            model.

    Raises:
        UserError: if a model cannot be parsed or loaded, or its name is not unique or not a valid folder name.
    """
    cfgs = {}
    for name, config_file, checkpoint in parse_model_specs(models, "--compare", exported=True):
        if not FOLDER.fullmatch(name):
            raise UserError(f"--compare {name!r} is not a valid folder name for its results: use letters, digits, ._+-")
        cfgs[name] = model_cfg = copy.deepcopy(cfg)
        if config_file:
            model_cfg.model = load_config(config_file).model
            if "num_classes" in model_cfg.model:
                model_cfg.model.num_classes = cfg.model.num_classes  # the command line may have set it
        model_cfg.train.init_checkpoint = checkpoint
        model_cfg.train.output_dir = os.path.join(cfg.train.output_dir, name)
    results = _evaluate(cfg, cfgs)
    if comm.is_main_process():
        write_json(results, os.path.join(cfg.train.output_dir, "comparison.json"))
    return results


def _evaluate(output: DictConfig, cfgs: dict[str, DictConfig]) -> dict[str, dict]:
    """Evaluate the models of configs with the same test set, and log to the output folder of `output`."""
    plain_output = copy.deepcopy(output)  # without the objects that are put into it
    # load everything first, so that an error comes before the first evaluation
    models, classes = {}, {}
    for name, cfg in cfgs.items():
        models[name], classes[f"the model in {cfg.train.init_checkpoint}"] = load(cfg)
    loader = build_test_loader(output)
    check_classes(classes | dataset_classes(output, "test"))
    open_output_dir(plain_output, keep_config=True)
    results = {
        name: evaluate(models[name], loader, build_evaluator(cfg), cfg.train.output_dir) for name, cfg in cfgs.items()
    }
    if not comm.is_main_process():
        return results
    results = nan_to_none(results)
    first = next(iter(cfgs))
    settings = cfgs[first].train.get("benchmark")
    if settings is not None:
        costs, machine = _benchmark(loader, models, **settings)
        for name, cfg in cfgs.items():
            size = file_size(models[name], cfg.train.init_checkpoint)
            results[name] |= dict(benchmark=costs[name] | dict(file_mib=size), environment=machine)
            write_json(results[name], os.path.join(cfg.train.output_dir, "results.json"))
    logger.info(f"Results{f', and differences from {first}' if len(cfgs) > 1 else ''}:\n{comparison_table(results)}")
    return results


def load(cfg: DictConfig) -> tuple[nn.Module, list[str] | None]:
    """Return the model of a config, ready for inference, or the exported one that `cfg.train.init_checkpoint` names.

    Its class names are returned too, or None if its file does not have them.
    """
    path = cfg.train.init_checkpoint
    if not path.endswith(SUFFIXES):
        model, metadata = load_model_and_metadata(cfg)
        return prepare_inference(model, cfg), metadata.get("class_names")
    model = ExportedDetector(path)
    if model.num_classes != cfg.model.num_classes:
        raise UserError(
            f"{path} has {model.num_classes} classes and the config {cfg.model.num_classes}: compare models of one "
            "dataset"
        )
    return model, model.metadata["class_names"]


def file_size(model: nn.Module, checkpoint: str) -> float | None:
    """Return the size of a model's file in MiB, or None if it is not on this disk."""
    if isinstance(model, ExportedDetector):
        return model.file_size / MEBI
    return os.path.getsize(checkpoint) / MEBI if os.path.isfile(checkpoint) else None


def _benchmark(loader: Iterable, models: dict[str, nn.Module], images: int, rounds: int) -> tuple[dict, dict]:
    """Measure the cost of models on the first images of the test set, and describe the environment."""
    logger.info(f"Measuring latency and memory on {images} images, {rounds} rounds")
    inputs = list(islice(chain.from_iterable(loader), images))
    # exported models have no parameters, and run on the CPU
    devices = [parameter.device for model in models.values() for parameter in model.parameters()]
    machine = environment(devices[0] if devices else torch.device("cpu"))
    logger.info(f"Hardware and versions:\n{tabulate(machine.items())}")
    return benchmark(models, inputs, rounds), machine
