"""Write a detector as ONNX, OpenVINO IR or a torch.export program, with metadata."""

import hashlib
import importlib
import importlib.metadata
import inspect
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..errors import UserError
from ..layers import no_fused_attention
from ..modeling import Detector
from .module import ExportableDetector

SUFFIXES = (".onnx", ".xml", ".pt2")
# of the metadata, which is JSON under the same names in all formats
METADATA_FILE = "metadata.json"
INPUTS, OUTPUTS = ("images", "sizes"), ("boxes", "scores", "labels")
# the first with GridSample is 16; ONNX Runtime and OpenVINO run both
OPSET = 17


def metadata_of(
    detector: Detector, inference: dict[str, Any], config: str, checkpoint: Path, size: tuple[int, int] | None
) -> dict[str, Any]:
    """Return what a file says about itself.

    Args:
        inference: `class_names` and `resize` (see `engine.checkpoint.inference_metadata`).
        config: name of the config.
        checkpoint: file with the weights.
        size: height and width of the input; None if they are free.
    """
    versions = dict(clockdistill=__version__, torch=torch.__version__)
    for name in ("onnx", "openvino"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return dict(
        class_names=list(inference["class_names"]),
        resize=inference["resize"],
        size=None if size is None else list(size),
        normalization=dict(
            inside_the_model=True,
            input="uint8 RGB",
            mean=detector.pixel_mean.flatten().tolist(),
            std=detector.pixel_std.flatten().tolist(),
        ),
        config=config,
        weights_sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        versions=versions,
    )


def write_model(
    detector: Detector,
    path: Path,
    size: tuple[int, int],
    metadata: dict[str, Any],
    dynamic: bool = False,
    grid_sample: str = "native",
) -> None:
    """Write a detector in the format that the file's suffix names.

    Args:
        path: ends in one of `SUFFIXES`; OpenVINO's `.xml` gets a `.bin` beside it.
        size: height and width of the input.
        metadata: values that JSON can hold.
        dynamic: let height and width vary, `size` being an example.
        grid_sample: see `ExportableDetector`.

    Raises:
        UserError: a package that the format needs is not installed.
    """
    module = ExportableDetector(detector, grid_sample, dynamic)
    # a batch of 1 would be taken for a constant
    height, width = size
    inputs = torch.zeros(2, 3, height, width, dtype=torch.uint8), torch.tensor([[height, width]] * 2)
    write = {".onnx": write_onnx, ".xml": write_openvino, ".pt2": write_program}[path.suffix]
    with no_fused_attention(), torch.no_grad():
        write(module, inputs, path, metadata, dynamic)


def write_onnx(
    module: ExportableDetector, inputs: tuple[Tensor, Tensor], path: Path, metadata: dict, dynamic: bool
) -> None:
    """Write standard operators of opset `OPSET`."""
    onnx = import_package("onnx")
    axes = {name: {0: "batch"} for name in INPUTS + OUTPUTS}
    if dynamic:
        axes["images"] |= {2: "height", 3: "width"}
    with warnings.catch_warnings(), quiet("torch.onnx"):
        # of the tracer: it warns about Python numbers, which are constants of the model here, and of its deprecation
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs,
            str(path),
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_axes=axes,
            opset_version=OPSET,
            **({"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}),
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.save(model, path)


def write_openvino(
    module: ExportableDetector, inputs: tuple[Tensor, Tensor], path: Path, metadata: dict, dynamic: bool
) -> None:
    """Write the ONNX model as OpenVINO IR, in float32."""
    openvino = import_package("openvino")
    intermediate = path.with_suffix(".onnx")
    try:
        write_onnx(module, inputs, intermediate, {}, dynamic)
        model = openvino.Core().read_model(intermediate)
    finally:
        intermediate.unlink(missing_ok=True)
    for name, value in metadata.items():
        model.set_rt_info(json.dumps(value), ["model_info", name])
    openvino.save_model(model, path, compress_to_fp16=False)


def write_program(
    module: ExportableDetector, inputs: tuple[Tensor, Tensor], path: Path, metadata: dict, dynamic: bool
) -> None:
    """Write a program that `torch.export.load` reads."""
    batch = torch.export.Dim("batch")
    if dynamic:
        raise UserError(f"{path.name} must have a fixed size: torch.export supports a free size for no detector")
    program = torch.export.export(module, inputs, dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata)})


def import_package(name: str) -> Any:
    """Import a package of the extra `export`, or raise a `UserError`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed: run `pip install {name}`") from error


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Show only errors of a logger."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
