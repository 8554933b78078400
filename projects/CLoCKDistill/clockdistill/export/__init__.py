"""Detectors as files that run without Detectron2: ONNX, OpenVINO IR and torch.export."""

from .compare import Differences, compare_models
from .module import ExportableDetector
from .runtime import ExportedDetector
from .write import SUFFIXES, metadata_of, write_model

__all__ = [
    "SUFFIXES",
    "Differences",
    "ExportableDetector",
    "ExportedDetector",
    "compare_models",
    "metadata_of",
    "write_model",
]
