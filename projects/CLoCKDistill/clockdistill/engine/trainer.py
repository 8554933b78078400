"""The training step: losses, perhaps with distillation, in full or mixed precision, with clipped gradients."""

import math
import time
from collections.abc import Iterable

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn

from ..distillation import DistillationHook


class Trainer(SimpleTrainer):
    """Detectron2's trainer for detection transformers.

    Where a `DistillationHook` is registered, the losses of a step are what the hook makes of model and data.

    Args:
        model: from a batch to a dictionary of scalar losses; perhaps in DistributedDataParallel.
        data_loader: endless batches.
        optimizer: of the model's parameters and of whatever else is trained.
        clip_grad: largest 2-norm of the gradient of all the optimizer's parameters together; None does not clip.
        amp_dtype: of mixed precision, `torch.bfloat16` or `torch.float16`; None trains in float32.
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
        # bfloat16 has the range of float32 and needs no scaling; a disabled scaler passes everything through
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=amp_dtype == torch.float16)

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = self.step_losses(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self.after_backward()

        # one transfer for all terms, where `.item()` of each would wait for the device every time
        values = torch.stack([loss.detach().float() for loss in losses.values()]).cpu()
        self._check_finite("loss", dict(zip(losses, values.tolist(), strict=True)))
        self._write_metrics(dict(zip(losses, values.unbind(), strict=True)), data_time)

        self.grad_scaler.unscale_(self.optimizer)
        norm = self._clip_gradients().item()
        if not self.grad_scaler.is_enabled():
            self._check_finite("gradient", {"grad_norm": norm})
        # the scaler leaves out steps with overflowing gradients, and their norm says nothing
        if math.isfinite(norm):
            self.storage.put_scalar("grad_norm", norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def step_losses(self, data: list[dict]) -> dict[str, Tensor]:
        for hook in self._hooks:
            if isinstance(hook, DistillationHook):
                return hook.step_losses(self.model, data)
        return self.model(data)

    def _clip_gradients(self) -> Tensor:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return nn.utils.clip_grad_norm_(parameters, math.inf if self.clip_grad is None else self.clip_grad)

    def _check_finite(self, what: str, values: dict[str, float]) -> None:
        names = [name for name, value in values.items() if not math.isfinite(value)]
        if names:
            mend = "lower optimizer.lr" + ("" if self.amp_dtype is None else " or set train.amp.enabled=False")
            raise FloatingPointError(
                f"the {what} became NaN or infinite at iteration {self.iter} ({', '.join(names)}): {mend}"
            )

    def state_dict(self) -> dict:
        return super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        # the run that wrote the state may have been in another precision: then a fresh scaler serves
        if state_dict["grad_scaler"]:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
