"""Building blocks without a model's opinion."""

from .attention import Attended, MultiScaleDeformableAttention
from .boxes import giou_loss, inverse_sigmoid
from .mlp import MLP
from .ms_deform_attn import ms_deform_attn
from .position_encoding import PositionEmbeddingSine, sine_embed_boxes

__all__ = [
    "MLP",
    "Attended",
    "MultiScaleDeformableAttention",
    "PositionEmbeddingSine",
    "giou_loss",
    "inverse_sigmoid",
    "ms_deform_attn",
    "sine_embed_boxes",
]
