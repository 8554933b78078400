"""Pictures of detectors' predictions, attention and training."""

from .comparison import draw_comparison, draw_detections, ground_truth
from .curves import plot_curves, plot_precision_recall
from .maps import ObjectView, draw_attention, draw_masks
from .sheet import write_png

__all__ = [
    "ObjectView",
    "draw_attention",
    "draw_comparison",
    "draw_detections",
    "draw_masks",
    "ground_truth",
    "plot_curves",
    "plot_precision_recall",
    "write_png",
]
