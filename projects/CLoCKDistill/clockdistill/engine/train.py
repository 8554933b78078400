"""Training and evaluation of a LazyConfig."""

import argparse
import logging
import os
import sys
from collections.abc import Iterable

import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, inference_context, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..distillation import DistillationHook
from ..errors import UserError
from ..evaluation.results import write_json
from ..modeling.weights import WeightLoader
from .checkpoint import Checkpointer, PeriodicCheckpointer, inference_metadata
from .hooks import EMAHook, ProgressBar
from .trainer import Trainer

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

logger = logging.getLogger(__name__)


def do_train(args: argparse.Namespace, cfg: DictConfig) -> None:
    """Train a model from its initial weights or, with `args.resume`, from the last checkpoint.

    Args:
        args: `resume` is used.
        cfg: with
            model: a meta-architecture;
            dataloader.{train, test, evaluator}: without the last two, nothing is evaluated;
            optimizer: its `params.model` is set here;
            lr_multiplier: an fvcore scheduler;
            distillation: a `DistillationHook`, or absent in plain training; its `student` is set here;
            train: see configs/common/train.py.
    """
    model = instantiate(cfg.model).to(cfg.train.device)
    logger.info(f"Model:\n{model}")
    logger.info(f"Parameters: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M")
    train_loader = build_loader(cfg, "train")
    # built now to report a wrong test set before training, not at the first evaluation
    evaluation = build_evaluation(cfg)

    distillation = build_distillation(cfg, model)
    if distillation is not None:
        distillation.calibrate(train_loader)
    optimizer = build_optimizer(cfg, model, distillation)
    ema = EMAHook(model, cfg.train.ema.decay) if cfg.train.ema.enabled else None
    eval_model = model if ema is None else ema.model

    ddp_device = {"device_ids": None} if cfg.train.device == "cpu" else {}
    trainer = Trainer(
        create_ddp_model(model, **cfg.train.ddp, **ddp_device),
        train_loader,
        optimizer,
        clip_grad=cfg.train.clip_grad,
        amp_dtype=amp_dtype(cfg),
    )
    metadata = inference_metadata(cfg)
    checkpointer = Checkpointer(model, cfg.train.output_dir, ema=ema and ema.model, metadata=metadata, trainer=trainer)
    is_main = comm.is_main_process()
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            distillation,
            ema,
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if is_main else None,
            hooks.EvalHook(cfg.train.eval_period, lambda: evaluate(eval_model, *evaluation, cfg.train.output_dir))
            if evaluation
            else None,
            *(progress_hooks(cfg) if is_main else ()),
        ]
    )

    resumed = args.resume and checkpointer.has_checkpoint()
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    # the trainer's state has the last finished iteration
    start_iter = trainer.iter + 1 if resumed else 0
    # building a teacher draws random numbers: seed again, so that training sees the same data with and without it
    if cfg.train.seed >= 0:
        seed_all_rng(cfg.train.seed + comm.get_rank() + start_iter)
    if start_iter >= cfg.train.max_iter:
        logger.info(f"Nothing to train: {start_iter} of train.max_iter={cfg.train.max_iter} iterations are done")
        if evaluation:
            evaluate(eval_model, *evaluation, cfg.train.output_dir)
        return
    trainer.train(start_iter, cfg.train.max_iter)


def do_test(cfg: DictConfig, model: nn.Module) -> dict:
    """Evaluate a model on `cfg.dataloader.test`; print the results and write `<output_dir>/results.json`."""
    evaluation = build_evaluation(cfg)
    if not evaluation:
        raise UserError("the config has no dataloader.test with dataloader.evaluator: there is nothing to evaluate on")
    return evaluate(model, *evaluation, cfg.train.output_dir)


def load_model(cfg: DictConfig) -> nn.Module:
    """Return the model of a config in eval mode, with all weights from `cfg.train.init_checkpoint`."""
    return load_model_and_metadata(cfg)[0]


def load_model_and_metadata(cfg: DictConfig) -> tuple[nn.Module, dict]:
    """Return the model as `load_model` does, and its checkpoint's metadata (see `inference_metadata`) or {}."""
    if not cfg.train.init_checkpoint:
        raise UserError("no trained weights are given: set train.init_checkpoint=…/model_final.pth")
    model = instantiate(cfg.model)
    contents = WeightLoader(model).load(cfg.train.init_checkpoint, checkpointables=[], strict=True)
    model = model.eval().to(cfg.train.device if torch.cuda.is_available() else "cpu")
    return model, contents.get("metadata", {})


def build_evaluation(cfg: DictConfig) -> tuple[Iterable, DatasetEvaluator] | None:
    if cfg.dataloader.get("test") is None or cfg.dataloader.get("evaluator") is None:
        return None
    loader = build_loader(cfg, "test")
    return loader, instantiate(cfg.dataloader.evaluator)


def build_loader(cfg: DictConfig, name: str) -> Iterable:
    """Build `cfg.dataloader.train` or `.test`.

    Raises:
        UserError: the data set is not in the catalog, not on disk or empty, or has a different number of classes.
    """
    key = f"dataloader.{name}.dataset.names"
    names = OmegaConf.select(cfg, key)
    names = [names] if isinstance(names, str) else list(names or ())
    try:
        loader = instantiate(cfg.dataloader[name])
    except FileNotFoundError as error:
        raise UserError(
            f"the data set {' + '.join(names)} needs {error.filename or error}, which does not exist: set "
            "DETECTRON2_DATASETS to the folder of your data sets"
        ) from error
    except (KeyError, AssertionError) as error:
        unknown = [n for n in names if n not in DatasetCatalog.list()]
        if not unknown and "is empty" not in str(error):
            raise
        what = f"{unknown[0]} is not in Detectron2's catalog: register it" if unknown else str(error).rstrip("!")
        raise UserError(f"{what}, or set {key} to another data set") from error
    for dataset in names:
        classes = MetadataCatalog.get(dataset).get("thing_classes", None)
        model_classes = cfg.model.get("num_classes", None)
        if None not in (classes, model_classes) and len(classes) != model_classes:
            raise UserError(
                f"the data set {dataset} has {len(classes)} classes and the model {model_classes}: "
                f"set model.num_classes={len(classes)}"
            )
    return loader


def build_distillation(cfg: DictConfig, student: nn.Module) -> DistillationHook | None:
    if cfg.get("distillation") is None:
        return None
    cfg.distillation.student = student
    return instantiate(cfg.distillation)


def build_optimizer(cfg: DictConfig, model: nn.Module, distillation: DistillationHook | None) -> torch.optim.Optimizer:
    """Build the config's optimizer, with the hook's parameters as an additional group."""
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    if distillation is not None and (projections := list(distillation.parameters())):
        optimizer.add_param_group({"params": projections})
    for group in optimizer.param_groups:
        # convert omegaconf's lists: only plain Python values in the optimizer's state can be loaded safely
        group.update({k: OmegaConf.to_container(v) for k, v in group.items() if OmegaConf.is_config(v)})
    return optimizer


def evaluate(model: nn.Module, loader: Iterable, evaluator: DatasetEvaluator, output_dir: str) -> dict:
    """Evaluate a model with any number of processes; the main one prints and writes the results.

    The model gets one image at a time, whatever the loader's batch size, because padding to the largest image of a
    batch changes the predictions.
    """
    with inference_context(model):
        results = inference_on_dataset(lambda batch: [y for x in batch for y in model([x])], loader, evaluator)
    if comm.is_main_process():
        print_csv_format(results)
        write_json(results, os.path.join(output_dir, "results.json"))
    return results


def progress_hooks(cfg: DictConfig) -> list[HookBase]:
    """Write metrics.json and TensorBoard files, and show a progress bar on a terminal or log lines elsewhere."""
    output_dir = cfg.train.output_dir
    writers = [JSONWriter(os.path.join(output_dir, "metrics.json")), TensorboardXWriter(output_dir)]
    if sys.stderr.isatty():
        return [ProgressBar(), hooks.PeriodicWriter(writers, cfg.train.log_period)]
    return [hooks.PeriodicWriter([CommonMetricPrinter(cfg.train.max_iter), *writers], cfg.train.log_period)]


def amp_dtype(cfg: DictConfig) -> torch.dtype | None:
    if not cfg.train.amp.enabled:
        return None
    if cfg.train.amp.dtype not in AMP_DTYPES:
        raise UserError(f"train.amp.dtype is {cfg.train.amp.dtype!r}: choose one of {', '.join(AMP_DTYPES)}")
    return AMP_DTYPES[cfg.train.amp.dtype]
