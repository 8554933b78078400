"""`--eval-only`: how good models are and what they cost, one model or several side by side."""

import copy
import logging
import os
import re
from collections.abc import Sequence
from itertools import chain, islice

from detectron2.utils import comm
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

from ..errors import UserError
from ..evaluation.benchmark import benchmark, comparison_table, environment
from .config import load_config
from .named_models import parse_models
from .train import build_loader, do_test, load_model, without_nan, write_json

FOLDER = re.compile(r"\w[\w .+-]*")

logger = logging.getLogger(__name__)


def eval_only(cfg: DictConfig) -> dict:
    """Evaluate the model of a config with the weights of `cfg.train.init_checkpoint`, and measure what it costs.

    Returns:
        On the main process what is then in `<output_dir>/results.json`: the evaluators' results by task, `benchmark`
        (see `evaluation.benchmark.benchmark`) and `environment`.
    """
    return _evaluate({"model": cfg})["model"]


def compare(cfg: DictConfig, models: Sequence[str]) -> dict[str, dict]:
    """Evaluate several models on the test set of a config, and print a table with differences from the first.

    Results of each are in `<output_dir>/NAME/`, and those of all in `<output_dir>/comparison.json`.

    Args:
        models: NAME=CONFIG:CHECKPOINT each, of whose configs nothing but the model counts; its classes are as many
                as those of `cfg`.

    Raises:
        UserError: a model is written otherwise, two have the same name, a name that cannot be a folder's, or what
            `load_model` raises.
    """
    cfgs = {}
    for name, config, checkpoint in parse_models(models, "--compare"):
        if not FOLDER.fullmatch(name):
            raise UserError(f"results of --compare {name!r} go to a folder of that name: use letters, digits and ._+-")
        cfgs[name] = own = copy.deepcopy(cfg)
        own.model = load_config(config).model
        if "num_classes" in own.model:
            own.model.num_classes = cfg.model.num_classes  # the test set's, which the command line may have set
        own.train.init_checkpoint = checkpoint
        own.train.output_dir = os.path.join(cfg.train.output_dir, name)
    results = _evaluate(cfgs)
    if comm.is_main_process():
        write_json(results, os.path.join(cfg.train.output_dir, "comparison.json"))
    return results


def _evaluate(cfgs: dict[str, DictConfig]) -> dict[str, dict]:
    """Results of every config's model, the data being the same in all."""
    # a checkpoint that does not load is heard of before the first evaluation
    models = {name: load_model(cfg) for name, cfg in cfgs.items()}
    results = {name: do_test(cfg, models[name]) for name, cfg in cfgs.items()}
    if not comm.is_main_process():
        return results
    results = without_nan(results)
    first = next(iter(cfgs))
    settings = cfgs[first].train.get("benchmark")
    if settings is not None:
        costs, machine = _benchmark(cfgs[first], models, **settings)
        for name, cfg in cfgs.items():
            results[name] |= dict(benchmark=costs[name], environment=machine)
            write_json(results[name], os.path.join(cfg.train.output_dir, "results.json"))
    logger.info(f"Results{f', and differences from {first}' if len(cfgs) > 1 else ''}:\n{comparison_table(results)}")
    return results


def _benchmark(cfg: DictConfig, models: dict[str, nn.Module], images: int, rounds: int) -> tuple[dict, dict]:
    """What the models cost on the first images of the test set, and on which machine."""
    logger.info(f"Measuring time and memory on {images} images, {rounds} rounds")
    inputs = list(islice(chain.from_iterable(build_loader(cfg, "test")), images))
    machine = environment(next(next(iter(models.values())).parameters()).device)
    logger.info(f"Hardware and versions:\n{tabulate(machine.items())}")
    return benchmark(models, inputs, rounds), machine
