"""Detectors as files that run without Detectron2: ONNX, OpenVINO IR and torch.export."""

from .accuracy import Evaluation, confident_detections
from .compare import Differences, compare_models
from .module import ExportableDetector
from .quantize import MAX_LOSS, Quantizer, choose_parts, float_layers
from .runtime import ExportedDetector
from .write import SUFFIXES, metadata_of, save, write_model

__all__ = [
    "MAX_LOSS",
    "SUFFIXES",
    "Differences",
    "Evaluation",
    "ExportableDetector",
    "ExportedDetector",
    "Quantizer",
    "choose_parts",
    "compare_models",
    "confident_detections",
    "float_layers",
    "metadata_of",
    "save",
    "write_model",
]
