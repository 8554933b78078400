"""The training step: losses, in full or mixed precision, with gradient clipping."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modeling import Detector
from ..modeling.parallel import synchronized
from ..seeding import STEP, seed_all

logger = logging.getLogger(__name__)

LossFunction = Callable[[nn.Module, Sequence[list[dict]], float], Iterator[dict[str, Tensor]]]


def model_losses(model: nn.Module, batches: Sequence[list[dict]], loss_scale: float = 1.0) -> Iterator[dict]:
    """Yield the losses that the model returns for each batch; a `Detector` divides them by the objects of all."""
    detector = getattr(model, "module", model)
    parts = detector.joint_targets(batches) if isinstance(detector, Detector) else None
    for index, data in enumerate(batches):
        with synchronized([model], index == len(batches) - 1):
            losses = model(data) if parts is None else model(data, targets=parts[index])
        yield losses


class Trainer(SimpleTrainer):
    """Detectron2's trainer for detection transformers.

    By default the losses of a step are those that the model returns. A hook changes that with `set_loss_function`.

    A step whose losses or gradients are not finite is skipped: it changes neither weights nor batch-norm statistics.

    Args:
        model: maps a batch to a dictionary of scalar losses; perhaps in DistributedDataParallel.
        data_loader: an endless iterable of batches.
        optimizer: for the parameters of the model and of hooks.
        clip_grad: maximum 2-norm of the gradient of all the optimizer's parameters; None disables clipping.
        amp_dtype: `torch.bfloat16` or `torch.float16` for mixed precision; None trains in float32.
        seed: seeds every step together with the iteration and the process; negative does not seed.
        max_nonfinite_steps: number of such steps in a row that end the training.
        accumulate: number of batches per step. Losses and gradients are the means over the batches.

    Attributes:
        nonfinite_steps: number of steps skipped in a row, up to the last one.
        skipped_steps: number of steps skipped since the first iteration; `skipped_steps` in metrics.json.
        last_iter: the last finished iteration.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        clip_grad: float | None = None,
        amp_dtype: torch.dtype | None = None,
        seed: int = -1,
        max_nonfinite_steps: int = 1,
        accumulate: int = 1,
    ):
        super().__init__(model, data_loader, optimizer)
        self.clip_grad = clip_grad
        self.amp_dtype = amp_dtype
        self.device = next(model.parameters()).device
        self.device_type = self.device.type
        # bfloat16 has the range of float32 and needs no scaling; a disabled scaler does nothing
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=amp_dtype == torch.float16)
        self.seed = seed
        self.max_nonfinite_steps = max_nonfinite_steps
        self.accumulate = accumulate
        self.nonfinite_steps = 0
        self.skipped_steps = 0
        self.last_iter = -1
        self._statistics = [b for m in model.modules() if isinstance(m, _BatchNorm) for b in m.buffers()]
        self._loss_function: LossFunction = model_losses

    def set_loss_function(self, function: LossFunction) -> None:
        """Let a hook compute the losses of every step. Call it from the hook's `before_train`.

        Args:
            function: takes the model (in DistributedDataParallel if there are several processes), the batches, and the
                factor by which the losses are multiplied before the backward pass (1 except in float16). It must call
                the model's forward once per batch, in `synchronized`, and yield scalar losses by name, whose sum is
                minimized. The backward pass of a batch runs before the losses of the next one are asked for.

        Raises:
            RuntimeError: another hook has set one already.
        """
        if self._loss_function not in (model_losses, function):
            raise RuntimeError("two hooks set the loss function of the trainer: register only one of them")
        self._loss_function = function

    def before_step(self) -> None:
        if self.seed >= 0:
            seed_all(STEP, self.seed, comm.get_rank(), self.iter)
        super().before_step()

    def run_step(self) -> None:
        start = time.perf_counter()
        batches = [next(self._data_loader_iter) for _ in range(self.accumulate)]
        data_time = time.perf_counter() - start

        statistics = [buffer.clone() for buffer in self._statistics]
        self.optimizer.zero_grad()
        losses = self._forward_and_backward(batches)
        self.after_backward()
        self.grad_scaler.unscale_(self.optimizer)
        norm = self._clip_gradients()

        # one transfer for all values, because each `.item()` would synchronize with the device
        *values, norm = torch.stack([*losses.values(), norm.float()]).tolist()
        losses = dict(zip(losses, values, strict=True))
        broken = self._nonfinite(losses, norm)
        if broken:
            for buffer, value in zip(self._statistics, statistics, strict=True):
                buffer.copy_(value)
            self.grad_scaler.update()
            self._skip_step(broken)
            return
        self.nonfinite_steps = 0
        self._write_metrics({name: torch.tensor(value) for name, value in losses.items()}, data_time)
        # float16's scaler skips steps whose gradients overflow, and their norm is meaningless
        if math.isfinite(norm):
            self.storage.put_scalar("grad_norm", norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def after_step(self) -> None:
        self.last_iter = self.iter
        super().after_step()

    def _nonfinite(self, losses: dict[str, float], norm: float) -> list[str]:
        """Return the names of the losses of all processes that are not finite, or else "grad_norm" if that is not.

        Gradients that overflow in float16 do not count as long as the scaler can lower its scale.
        """
        names = [name for name, value in losses.items() if not math.isfinite(value)]
        if not names and not math.isfinite(norm) and self.grad_scaler.get_scale() <= 1:
            names = ["grad_norm"]
        if comm.get_world_size() > 1:
            any_broken = torch.tensor(bool(names), dtype=torch.int32, device=self.device)
            torch.distributed.all_reduce(any_broken, torch.distributed.ReduceOp.MAX)
            if any_broken:
                names = list(dict.fromkeys(name for part in comm.all_gather(names) for name in part))
        return names

    def _skip_step(self, broken: list[str]) -> None:
        """Count a step that is not finite.

        Raises:
            FloatingPointError: there were too many in a row.
        """
        self.nonfinite_steps += 1
        self.skipped_steps += 1
        self.storage.put_scalar("skipped_steps", self.skipped_steps, smoothing_hint=False)
        what = "gradient" if broken == ["grad_norm"] else "loss"
        names = ", ".join(broken)
        if self.nonfinite_steps < self.max_nonfinite_steps:
            logger.warning(
                f"Skipped iteration {self.iter}: the {what} is NaN or infinite ({names}), "
                f"{self.nonfinite_steps} of at most {self.max_nonfinite_steps} times in a row"
            )
            return
        first = self.iter - self.nonfinite_steps + 1
        where = f"at iteration {first}" if first == self.iter else f"in iterations {first} to {self.iter}"
        remedy = "lower optimizer.lr" + ("" if self.amp_dtype is None else " or set train.amp.enabled=False")
        raise FloatingPointError(f"the {what} became NaN or infinite {where} ({names}): {remedy}")

    def _forward_and_backward(self, batches: list[list[dict]]) -> dict[str, Tensor]:
        """Accumulate the gradients of the batches, and return the means of their losses."""
        means = defaultdict(float)
        parts = self._loss_function(self.model, batches, self.grad_scaler.get_scale())
        for _ in batches:
            with torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
                losses = next(parts)
                total = sum(losses.values()) / len(batches)
            self.grad_scaler.scale(total).backward()
            for name, loss in losses.items():
                means[name] += loss.detach().float() / len(batches)
        return means

    def _clip_gradients(self) -> Tensor:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return nn.utils.clip_grad_norm_(parameters, math.inf if self.clip_grad is None else self.clip_grad)

    def state_dict(self) -> dict:
        return super().state_dict() | {
            "grad_scaler": self.grad_scaler.state_dict(),
            "nonfinite_steps": self.nonfinite_steps,
            "skipped_steps": self.skipped_steps,
            "num_processes": comm.get_world_size(),
            "accumulate": self.accumulate,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.nonfinite_steps = state_dict.get("nonfinite_steps", 0)
        self.skipped_steps = state_dict.get("skipped_steps", 0)
        before, now = state_dict.get("num_processes", 1), comm.get_world_size()
        if before != now:
            logger.warning(
                f"The checkpoint is of {before} process(es), and now there are {now}: data come in another order"
            )
        if (before := state_dict.get("accumulate", 1)) != self.accumulate:
            logger.warning(
                f"The checkpoint is of a training with train.accumulate={before}, and now it is {self.accumulate}: "
                "data come in another order"
            )
        # the state is empty if the earlier run used another precision; then keep the new scaler
        if state_dict["grad_scaler"]:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
