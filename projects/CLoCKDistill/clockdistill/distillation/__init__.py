"""What is compared, what is asked, and the trainer hook that does both."""

from .base import DistillationLoss
from .hook import DistillationHook
from .logits import MatchedLogitLoss, TargetAwareLogitLoss
from .memory import MemoryLoss, PlainFeatureLoss

__all__ = [
    "DistillationHook",
    "DistillationLoss",
    "MatchedLogitLoss",
    "MemoryLoss",
    "PlainFeatureLoss",
    "TargetAwareLogitLoss",
]
