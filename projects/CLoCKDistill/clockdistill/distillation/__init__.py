"""Knowledge distillation: the losses, the target queries and the trainer hook."""

from .base import DistillationLoss
from .features import FGDLoss, FitNetsLoss, MGDLoss
from .hook import DistillationHook
from .logits import MatchedLogitLoss, TargetAwareLogitLoss
from .memory import MemoryLoss, PlainFeatureLoss

__all__ = [
    "DistillationHook",
    "DistillationLoss",
    "FGDLoss",
    "FitNetsLoss",
    "MGDLoss",
    "MatchedLogitLoss",
    "MemoryLoss",
    "PlainFeatureLoss",
    "TargetAwareLogitLoss",
]
