"""Signals that stop a training: it finishes the step and saves a checkpoint."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

# a scheduler's request, Ctrl-C, and SLURM's warning (--signal=USR1@60)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(BaseException):
    """Raised between two steps after a signal.

    Args:
        number: of the signal.
        together: whether all processes stop after the same step.

    Attributes:
        signal: the signal.
        status: the exit status by which shells report it: 143 for SIGTERM, 130 for SIGINT, 138 for SIGUSR1.
    """

    def __init__(self, number: int, together: bool = False):
        self.together = together
        self.signal = signal.Signals(number)
        self.status = 128 + number
        super().__init__(self.signal.name)


class StopHook(HookBase):
    """Raises `Stopped` in all processes after the same step once one of them has received a signal.

    A second Ctrl-C interrupts at once. Use it as a context manager, which handles the signals, and register it after
    all other hooks.

    Attributes:
        received: number of the signal, or 0.
        in_step: whether to wait for the end of the step; otherwise a signal raises `Stopped` immediately.
    """

    def __init__(self):
        self.received = 0
        self.in_step = False
        self._pid = os.getpid()

    def __enter__(self) -> "StopHook":
        # the launcher's processes ignore SIGINT, which it turns into SIGTERM
        heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._handle) for number in heeded}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked data worker
            return
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
        if not self.in_step:
            raise Stopped(self.received)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal stop what is not a step, such as an evaluation, immediately."""
        before, self.in_step = self.in_step, False
        try:
            if self.received:
                raise Stopped(self.received)
            yield
        finally:
            self.in_step = before

    def before_step(self) -> None:
        self.in_step = True

    def after_step(self) -> None:
        received = self.received
        if comm.get_world_size() > 1:
            device = next(self.trainer.model.parameters()).device
            numbers = torch.tensor(received, device=device)
            torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
            received = int(numbers)
        if received:
            raise Stopped(received, together=True)
