"""Detection transformers as Detectron2 meta-architectures."""

from .backbone import build_resnet
from .criterion import SetCriterion
from .dab_detr import DABDETR, DABDecoder, DABEncoder
from .deformable_detr import DeformableDETR, DeformableDETRDecoder
from .denoising import ContrastiveDenoising
from .detector import Detector
from .dino import DINO
from .matcher import HungarianMatcher
from .neck import ChannelMapper
from .structures import Memory, Outputs, Predictions, Queries, Target, Targets
from .transformer import DeformableDecoder, DeformableEncoder

__all__ = [
    "DABDETR",
    "DINO",
    "ChannelMapper",
    "ContrastiveDenoising",
    "DABDecoder",
    "DABEncoder",
    "DeformableDETR",
    "DeformableDETRDecoder",
    "DeformableDecoder",
    "DeformableEncoder",
    "Detector",
    "HungarianMatcher",
    "Memory",
    "Outputs",
    "Predictions",
    "Queries",
    "SetCriterion",
    "Target",
    "Targets",
    "build_resnet",
]
