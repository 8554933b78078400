"""Model-agnostic building blocks."""

from .attention import Attended, MultiScaleDeformableAttention, no_fused_attention
from .boxes import giou_loss, inverse_sigmoid
from .mlp import MLP
from .ms_deform_attn import ms_deform_attn
from .position_encoding import PositionEmbeddingSine, sine_embed_boxes
from .precision import at_least_float32

__all__ = [
    "MLP",
    "Attended",
    "MultiScaleDeformableAttention",
    "PositionEmbeddingSine",
    "at_least_float32",
    "giou_loss",
    "inverse_sigmoid",
    "ms_deform_attn",
    "no_fused_attention",
    "sine_embed_boxes",
]
