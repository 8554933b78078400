"""Modules in DistributedDataParallel."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn.parallel import DistributedDataParallel


@contextlib.contextmanager
def synchronized(modules: Iterable[nn.Module | None], enabled: bool) -> Iterator[None]:
    """Run forward passes whose backward pass averages the gradients over processes, unless this is not enabled.

    Gradients that are not averaged add up, and are averaged with those of the next pass that is.
    """
    with contextlib.ExitStack() as stack:
        for module in modules:
            if not enabled and isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield
