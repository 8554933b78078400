"""Trainer hooks for averaged weights and progress."""

import contextlib
import logging

from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm


class EMAHook(HookBase):
    """Exponential moving average of a model's weights and buffers, updated after every step.

    The decay grows to its final value as in TensorFlow. With a constant 0.9998, the initial weights would still make up
    more than half of the average after 3,000 iterations.

    Args:
        model: not wrapped in DistributedDataParallel.
        decay: final decay, in [0, 1).

    Attributes:
        model: the averaged model.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._source = model
        self._decay = decay
        self._average = AveragedModel(model, multi_avg_fn=self._update, use_buffers=True)
        self._average.requires_grad_(False)

    def _update(self, averages: list[Tensor], values: list[Tensor], num_averaged: Tensor) -> None:
        steps = int(num_averaged)
        get_ema_multi_avg_fn(min(self._decay, (1 + steps) / (10 + steps)))(averages, values, num_averaged)

    @property
    def model(self) -> nn.Module:
        return self._average.module

    def after_step(self) -> None:
        self._average.update_parameters(self._source)

    def state_dict(self) -> dict:
        # the averaged weights are in the checkpoint's model file
        return {"n_averaged": self._average.n_averaged.item()}

    def load_state_dict(self, state_dict: dict) -> None:
        self._average.n_averaged.fill_(state_dict["n_averaged"])


class ProgressBar(HookBase):
    """Progress bar for terminals, below the log lines."""

    def __init__(self):
        self._contexts = contextlib.ExitStack()

    def before_train(self) -> None:
        loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "clockdistill")]
        self._contexts.enter_context(logging_redirect_tqdm(loggers))
        bar = tqdm(initial=self.trainer.start_iter, total=self.trainer.max_iter, desc="train", dynamic_ncols=True)
        self._bar = self._contexts.enter_context(bar)

    def after_step(self) -> None:
        losses = self.trainer.storage.histories().get("total_loss")
        if losses:  # absent until a step has finite losses
            self._bar.set_postfix(loss=f"{losses.median(20):.4g}", refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        self._contexts.close()
