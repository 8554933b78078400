"""CLoCKDistill: location-and-context-aware knowledge distillation for detection transformers (arXiv:2502.10683)."""

from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("detectron2") is None:
    raise ImportError("clockdistill needs Detectron2: run `make env` in its repository, or install it from source")
