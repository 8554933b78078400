"""The training step: losses, in full or mixed precision, with gradient clipping."""

import math
import time
from collections.abc import Callable, Iterable

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn

LossFunction = Callable[[nn.Module, list[dict], float], dict[str, Tensor]]


class Trainer(SimpleTrainer):
    """Detectron2's trainer for detection transformers.

    By default the losses of a step are those that the model returns. A hook changes that with `set_loss_function`.

    Args:
        model: maps a batch to a dictionary of scalar losses; perhaps in DistributedDataParallel.
        data_loader: an endless iterable of batches.
        optimizer: for the parameters of the model and of hooks.
        clip_grad: maximum 2-norm of the gradient of all the optimizer's parameters; None disables clipping.
        amp_dtype: `torch.bfloat16` or `torch.float16` for mixed precision; None trains in float32.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        clip_grad: float | None = None,
        amp_dtype: torch.dtype | None = None,
    ):
        super().__init__(model, data_loader, optimizer)
        self.clip_grad = clip_grad
        self.amp_dtype = amp_dtype
        self.device_type = next(model.parameters()).device.type
        # bfloat16 has the range of float32 and needs no scaling; a disabled scaler does nothing
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=amp_dtype == torch.float16)
        self._loss_function: LossFunction | None = None

    def set_loss_function(self, function: LossFunction) -> None:
        """Let a hook compute the losses of every step. Call it from the hook's `before_train`.

        Args:
            function: takes the model (in DistributedDataParallel if there are several processes), the batch, and the
                factor by which the losses are multiplied before the backward pass (1 except in float16). It must call
                the model's forward once and return scalar losses by name; their sum is minimized.

        Raises:
            RuntimeError: another hook has set one already.
        """
        if self._loss_function not in (None, function):
            raise RuntimeError("two hooks set the loss function of the trainer: register only one of them")
        self._loss_function = function

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = self._compute_losses(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self.after_backward()

        # one transfer for all losses, because each `.item()` would synchronize with the device
        values = torch.stack([loss.detach().float() for loss in losses.values()]).cpu()
        self._check_finite("loss", dict(zip(losses, values.tolist(), strict=True)))
        self._write_metrics(dict(zip(losses, values.unbind(), strict=True)), data_time)

        self.grad_scaler.unscale_(self.optimizer)
        norm = self._clip_gradients().item()
        if not self.grad_scaler.is_enabled():
            self._check_finite("gradient", {"grad_norm": norm})
        # the scaler skips steps whose gradients overflow, and their norm is meaningless
        if math.isfinite(norm):
            self.storage.put_scalar("grad_norm", norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _compute_losses(self, data: list[dict]) -> dict[str, Tensor]:
        if self._loss_function is None:
            return self.model(data)
        return self._loss_function(self.model, data, self.grad_scaler.get_scale())

    def _clip_gradients(self) -> Tensor:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return nn.utils.clip_grad_norm_(parameters, math.inf if self.clip_grad is None else self.clip_grad)

    def _check_finite(self, what: str, values: dict[str, float]) -> None:
        names = [name for name, value in values.items() if not math.isfinite(value)]
        if names:
            remedy = "lower optimizer.lr" + ("" if self.amp_dtype is None else " or set train.amp.enabled=False")
            raise FloatingPointError(
                f"the {what} became NaN or infinite at iteration {self.iter} ({', '.join(names)}): {remedy}"
            )

    def state_dict(self) -> dict:
        return super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        # the state is empty if the earlier run used another precision; then keep the new scaler
        if state_dict["grad_scaler"]:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
