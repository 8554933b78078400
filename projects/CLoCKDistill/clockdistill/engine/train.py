"""Training and evaluation of a LazyConfig."""

import argparse
import contextlib
import copy
import logging
import os
import sys
import time
from collections.abc import Iterable

import torch
from detectron2.engine import create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, inference_context, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import distributed, nn

from ..config_file import build
from ..data.loader import TrainLoader
from ..distillation import DistillationHook
from ..errors import UserError
from ..evaluation.results import write_json
from ..modeling.weights import WeightLoader, metadata_of
from .checkpoint import Checkpointer, PeriodicCheckpointer, inference_metadata
from .datasets import (
    build_evaluator,
    build_loader,
    build_test_loader,
    check_classes,
    dataset_classes,
    dataset_names,
    evaluates,
)
from .defaults import open_output_dir
from .hooks import EMAHook, ProgressBar
from .launch import LOST_CONNECTION
from .metrics import MetricsHook
from .output_dir import locked
from .stop import StopHook, Stopped
from .trainer import Trainer

logger = logging.getLogger(__name__)


def do_train(args: argparse.Namespace, cfg: DictConfig) -> None:
    """Train a model from its initial weights or, with `args.resume`, from the last checkpoint.

    On the CPU, a training that was interrupted and resumed any number of times equals an uninterrupted one bit for bit.

    Args:
        args: `resume` is used.
        cfg: with
            model: a meta-architecture;
            dataloader.{train, test, evaluator}: without the last two, nothing is evaluated;
            optimizer: its `params.model` is set here;
            lr_multiplier: an fvcore scheduler;
            distillation: a `DistillationHook`, or absent in plain training; its `student` is set here;
            train: see configs/common/train.py.

    Raises:
        Stopped: after SIGTERM, SIGINT or SIGUSR1, with a checkpoint of the last finished step.
        UserError: the config or the data are wrong, or another training uses the output folder.
    """
    trainer = None
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopHook())
        try:
            trainer = build_trainer(args.resume, cfg, stop, stack)
            trainer.train(trainer.start_iter, cfg.train.max_iter)
        except Stopped as stopped:
            save_and_report(trainer, stopped)
            raise
        except RuntimeError as error:
            # a data worker may have been told to stop too, or another process may have stopped already
            if not (LOST_CONNECTION.search(str(error)) or "DataLoader worker" in str(error)):
                raise
            with contextlib.suppress(Stopped):
                time.sleep(1)  # the signal to this process may still be on its way
            if not stop.received:
                raise
            stopped = Stopped(stop.received)
            save_and_report(trainer, stopped)
            raise stopped from None


def build_trainer(resume: bool, cfg: DictConfig, stop: StopHook, stack: contextlib.ExitStack) -> Trainer:
    """Build a trainer with all its hooks, whose `start_iter` is the first iteration to train.

    Args:
        resume: continue from the last checkpoint, if there is one.
        cfg: see `do_train`.
        stop: is registered as the last hook.
        stack: gets the lock of the output folder. Before that, nothing is written.
    """
    output_dir = cfg.train.output_dir
    plain_cfg = copy.deepcopy(cfg)  # without the objects that are put into it
    model = build(cfg.model, "model").to(cfg.train.device)
    logger.info(f"Model:\n{model}")
    logger.info(f"Parameters: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M")
    train_loader = build_loader(cfg, "train")
    # built now to report a wrong test set before training, not at the first evaluation
    test_loader = build_loader(cfg, "test") if evaluates(cfg) else None

    distillation = build_distillation(cfg, model)
    classes = dataset_classes(cfg, "train") | (dataset_classes(cfg, "test") if test_loader else {})
    if distillation is not None:
        classes["the teacher"] = distillation.teacher_classes
    check_classes(classes)
    optimizer = build_optimizer(cfg, model, distillation)
    ema = EMAHook(model, cfg.train.ema.decay) if cfg.train.ema.enabled else None
    eval_model = model if ema is None else ema.model

    def evaluate_model() -> dict:
        if comm.get_world_size() > 1:
            # each process has batch-norm statistics of its own, and the checkpoint those of the first
            for buffer in eval_model.buffers():
                distributed.broadcast(buffer, 0)
        with stop.interruptible(), autocast(cfg, eval_model):
            return evaluate(eval_model, test_loader, evaluator, output_dir)

    ddp_device = {"device_ids": None} if cfg.train.device == "cpu" else {}
    trainer = Trainer(
        create_ddp_model(model, **cfg.train.ddp, **ddp_device),
        train_loader,
        optimizer,
        clip_grad=cfg.train.clip_grad,
        amp_dtype=amp_dtype(cfg),
        seed=cfg.train.seed,
        max_nonfinite_steps=cfg.train.get("max_nonfinite_steps", 10),
        accumulate=cfg.train.get("accumulate", 1),
    )
    metadata = inference_metadata(cfg)
    checkpointer = Checkpointer(model, output_dir, ema=ema and ema.model, metadata=metadata, trainer=trainer)
    is_main = comm.is_main_process()
    trainer.checkpointer = PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            distillation,
            ema,
            hooks.LRScheduler(scheduler=build(cfg.lr_multiplier, "lr_multiplier")),
            trainer.checkpointer if is_main else None,
            MetricsHook(
                evaluate_model if test_loader else None, cfg.train.eval_period, cfg.train.log_period, output_dir
            ),
            ProgressBar() if is_main and sys.stderr.isatty() else None,
            stop,
        ]
    )

    def has_checkpoint() -> bool:
        if checkpointer.has_checkpoint() and not resume:
            with locked(output_dir):  # if another training is running, say that
                pass
            raise UserError(
                f"train.output_dir {output_dir} has the checkpoint of an earlier training: add --resume to continue "
                "it, or set another folder"
            )
        if checkpointer.is_finished():
            raise UserError(
                f"train.output_dir {output_dir} has a finished training without a checkpoint to resume from: set "
                "another folder, or remove its model_final.pth to train again"
            )
        return checkpointer.has_checkpoint()

    if not has_checkpoint():
        checkpointer.load(cfg.train.init_checkpoint, checkpointables=[])
    stack.enter_context(locked(output_dir))
    if has_checkpoint():
        checkpointer.resume()
        # the trainer's state has the last finished iteration
        trainer.start_iter = trainer.iter + 1
    if len(starts := set(comm.all_gather(trainer.start_iter))) > 1:
        raise UserError(
            f"the processes would start from different iterations ({', '.join(map(str, sorted(starts)))}): set "
            f"train.output_dir to a folder that all machines share, or copy {output_dir} to each"
        )
    open_output_dir(plain_cfg)
    if test_loader:
        # it writes the annotations to the output folder
        evaluator = build_evaluator(cfg)
    if trainer.start_iter >= cfg.train.max_iter:
        done = f"{trainer.start_iter} of train.max_iter={cfg.train.max_iter}"
        logger.info(f"Nothing to train: {done} iterations are done")
    elif distillation is not None:
        images = len(train_loader.dataset) if isinstance(train_loader, TrainLoader) else None
        distillation.calibrate(train_loader, dict(datasets=dataset_names(cfg, "train"), images=images))
    if trainer.start_iter:
        skip_batches(train_loader, trainer.start_iter * trainer.accumulate)
    return trainer


def do_test(cfg: DictConfig, model: nn.Module) -> dict:
    """Evaluate a model on `cfg.dataloader.test`; print the results and write `<output_dir>/results.json`."""
    return evaluate(model, build_test_loader(cfg), build_evaluator(cfg), cfg.train.output_dir)


def load_model(cfg: DictConfig) -> nn.Module:
    """Return the model of a config in eval mode, with all weights from `cfg.train.init_checkpoint`."""
    return load_model_and_metadata(cfg)[0]


def load_model_and_metadata(cfg: DictConfig) -> tuple[nn.Module, dict]:
    """Return the model as `load_model` does, and its checkpoint's metadata (see `inference_metadata`) or {}."""
    if not cfg.train.init_checkpoint:
        raise UserError("no trained weights are given: set train.init_checkpoint=…/model_final.pth")
    model = build(cfg.model, "model")
    contents = WeightLoader(model).load(cfg.train.init_checkpoint, checkpointables=[], strict=True)
    model = model.eval().to(cfg.train.device if torch.cuda.is_available() else "cpu")
    return model, metadata_of(contents)


def build_distillation(cfg: DictConfig, student: nn.Module) -> DistillationHook | None:
    if cfg.get("distillation") is None:
        return None
    cfg.distillation.student = student
    return build(cfg.distillation, "distillation")


def build_optimizer(cfg: DictConfig, model: nn.Module, distillation: DistillationHook | None) -> torch.optim.Optimizer:
    """Build the config's optimizer, with the hook's parameters as an additional group."""
    cfg.optimizer.params.model = model
    optimizer = build(cfg.optimizer, "optimizer")
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


def save_and_report(trainer: Trainer | None, stopped: Stopped) -> None:
    """Save the last finished step of a training that a signal stopped, and log where to continue."""
    if not comm.is_main_process():
        pass
    elif trainer is None or trainer.last_iter < trainer.start_iter:
        logger.warning(f"Stopped by {stopped} before the first step: start the training again as before")
    elif trainer.iter != trainer.last_iter:
        # in the middle of a step, or in the final evaluation: the weights are those of no finished step
        where = f"in iteration {trainer.iter}" if trainer.iter < trainer.max_iter else "in the last evaluation"
        logger.warning(f"Stopped by {stopped} {where}; {trainer.checkpointer.last()}")
    else:
        try:
            path = trainer.checkpointer.save()
            how = f", saved in {path}: continue with --resume"
        except UserError as error:
            how = f", but {error}; {trainer.checkpointer.last()}"
        logger.warning(f"Stopped by {stopped} after iteration {trainer.iter}{how}")
    if stopped.together:
        # a process that ends before the checkpoint is written may take the others with it
        comm.synchronize()


def skip_batches(loader: Iterable, count: int) -> None:
    """Let a loader start after the batches that an earlier run has seen."""
    if hasattr(loader, "start"):
        loader.start = count
    else:
        logger.warning(
            "The training loader starts from its beginning, because it cannot skip batches: use "
            "clockdistill.data.build_train_loader for a training that continues exactly where it stopped"
        )


def prepare_inference(model: nn.Module, cfg: DictConfig) -> nn.Module:
    """Let a model in eval mode run in the precision of `train.amp` and, with `train.compile`, compiled."""
    if cfg.train.get("compile", False):
        model.compile()
    model.forward = autocast(cfg, model)(model.forward)
    return model


def autocast(cfg: DictConfig, model: nn.Module) -> torch.autocast:
    """Return the context of `train.amp` on the model's device, which is also a decorator."""
    dtype = amp_dtype(cfg)
    return torch.autocast(next(model.parameters()).device.type, dtype=dtype, enabled=dtype is not None)


def amp_dtype(cfg: DictConfig) -> torch.dtype | None:
    return getattr(torch, cfg.train.amp.dtype) if cfg.train.amp.enabled else None
