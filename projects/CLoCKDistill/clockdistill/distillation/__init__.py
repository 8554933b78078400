"""Knowledge distillation: the losses, the target queries and the trainer hook."""

from .base import DistillationLoss
from .detrdistill import HungarianLogitLoss, QueryPriorLoss, TargetAwareFeatureLoss
from .features import FGDLoss, FitNetsLoss, MGDLoss
from .hook import DistillationHook
from .kd_detr import GeneralPointsLoss, SpecificPointsLoss
from .logits import MatchedLogitLoss, TargetAwareLogitLoss
from .memory import MemoryLoss, PlainFeatureLoss

__all__ = [
    "DistillationHook",
    "DistillationLoss",
    "FGDLoss",
    "FitNetsLoss",
    "GeneralPointsLoss",
    "HungarianLogitLoss",
    "MGDLoss",
    "MatchedLogitLoss",
    "MemoryLoss",
    "PlainFeatureLoss",
    "QueryPriorLoss",
    "SpecificPointsLoss",
    "TargetAwareFeatureLoss",
    "TargetAwareLogitLoss",
]
