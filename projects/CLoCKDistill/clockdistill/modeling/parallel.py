"""Modules in DistributedDataParallel."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn.parallel import DistributedDataParallel


@contextlib.contextmanager
def synchronized(modules: Iterable[nn.Module | None], enabled: bool) -> Iterator[None]:
    """Average the gradients of the forward passes inside over processes if `enabled`.

    Otherwise they accumulate, and are averaged with those of the next pass that is.
    """
    with contextlib.ExitStack() as stack:
        for module in modules:
            if not enabled and isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield
