"""Run an exported file by its runtime, as a Detectron2 meta-architecture."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import nn

from ..errors import UserError
from .write import METADATA_FILE, OUTPUTS, SUFFIXES, import_package

# images (B, 3, H, W) and sizes (B, 2) to boxes (B, N, 4), scores (B, N) and labels (B, N)
Run = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]


class ExportedDetector(nn.Module):
    """A file that `write_model` has written: a list of dictionaries in, `Instances` out.

    Args:
        path: with one of the suffixes in `write.SUFFIXES`.

    Attributes:
        metadata: see `write.metadata_of`.
        size: height and width of the input, or None if they are free. Smaller images are padded, and larger ones are
            made smaller.

    Raises:
        UserError: the file does not exist, is no such file, or its runtime is not installed.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path} is not an exported model: its name must end in {', '.join(SUFFIXES)}")
        if not path.is_file():
            raise UserError(f"exported model {path} does not exist: write it with export.py")
        if path.suffix == ".xml" and not path.with_suffix(".bin").is_file():
            raise UserError(f"{path.with_suffix('.bin')} does not exist: copy it together with {path.name}")
        opener = {".onnx": open_onnx, ".xml": open_openvino, ".pt2": open_program}[path.suffix]
        self.path = path
        self.run, metadata = opener(path)
        try:
            self.metadata = {name: json.loads(text) for name, text in metadata.items()}
            self.size = self.metadata["size"]
            self.num_classes = len(self.metadata["class_names"])
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} has no metadata of this project: write it with export.py") from error

    @property
    def file_size(self) -> int:
        """Size of the file, with OpenVINO's weights, in bytes."""
        files = [self.path, self.path.with_suffix(".bin")] if self.path.suffix == ".xml" else [self.path]
        return sum(file.stat().st_size for file in files)

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detect on images one by one: `image` (3, h, w) uint8, and `height` and `width` of the output."""
        return [self.detect(x) for x in batched_inputs]

    def detect(self, inputs: dict) -> dict[str, Instances]:
        image = inputs["image"].cpu().numpy()
        height, width = image.shape[1:]
        output_size = inputs.get("height", height), inputs.get("width", width)
        if self.size is not None:
            image = fit(image, *self.size)
        boxes, scores, labels = (torch.from_numpy(x[0]) for x in self.run(*pad([image], self.size)))
        instances = Instances(image.shape[1:], pred_boxes=Boxes(boxes), scores=scores, pred_classes=labels)
        return {"instances": detector_postprocess(instances, *output_size)}


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Make an image (3, h, w) smaller, with the same aspect ratio, unless it fits into the size."""
    scale = min(height / image.shape[1], width / image.shape[2])
    if scale >= 1:
        return image
    size = [max(1, int(side * scale)) for side in image.shape[1:]]
    resized = T.ResizeTransform(*image.shape[1:], *size).apply_image(image.transpose(1, 2, 0))
    return resized.transpose(2, 0, 1)


def pad(images: list[np.ndarray], size: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Pad images (3, h, w) to a size, or to that of the largest; return the batch (B, 3, H, W) and sizes (B, 2)."""
    sizes = np.array([image.shape[1:] for image in images], np.int64)
    batch = np.zeros((len(images), 3, *(size or sizes.max(0))), np.uint8)
    for padded, image in zip(batch, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


def open_onnx(path: Path) -> tuple[Run, dict[str, str]]:
    """Open a file with ONNX Runtime."""
    import_package("onnxruntime")
    try:
        session = open_session(str(path))
    except Exception as error:  # its exceptions have no common base
        raise unreadable(path, "ONNX Runtime", error) from error
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda images, sizes: session.run(list(OUTPUTS), {"images": images, "sizes": sizes}), metadata


def open_session(model: str | bytes) -> Any:
    """Open a path or a serialized model on the CPU, with as many threads as PyTorch has."""
    onnxruntime = import_package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def open_openvino(path: Path) -> tuple[Run, dict[str, str]]:
    """Open a file with OpenVINO."""
    openvino = import_package("openvino")
    try:
        model = openvino.Core().read_model(path)
        compiled = open_openvino_model(model)
    except RuntimeError as error:
        raise unreadable(path, "OpenVINO", error) from error
    metadata = {}
    if model.has_rt_info(["model_info"]):
        info = model.get_rt_info(["model_info"]).astype(dict)
        metadata = {name: getattr(value, "value", value) for name, value in info.items()}

    def run(images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        # the next call overwrites the arrays
        return [x.copy() for x in compiled([images, sizes]).values()]

    return run, metadata


def open_openvino_model(model: Any) -> Any:
    """Compile a model for the CPU in float32, with as many threads as PyTorch has."""
    openvino = import_package("openvino")
    # some processors would use bfloat16
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return openvino.Core().compile_model(model, "CPU", settings)


def open_program(path: Path) -> tuple[Run, dict[str, str]]:
    """Open a file with torch.export."""
    files: dict[str, Any] = {METADATA_FILE: ""}
    try:
        module = torch.export.load(path, extra_files=files).module()
    except Exception as error:  # a zip archive of another kind fails in many ways
        raise unreadable(path, "torch.export", error) from error
    metadata = json.loads(files[METADATA_FILE] or "{}")

    def run(images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        return [x.numpy() for x in module(torch.from_numpy(images), torch.from_numpy(sizes))]

    return run, {name: json.dumps(value) for name, value in metadata.items()}


def unreadable(path: Path, runtime: str, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{path} cannot be opened by {runtime} ({reason}): write it again with export.py")
