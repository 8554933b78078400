"""CLoCKDistill: location-and-context-aware knowledge distillation for detection transformers (arXiv:2502.10683)."""

__version__ = "0.1.0"
