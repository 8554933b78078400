"""Write a detector as ONNX, OpenVINO IR or a torch.export program, with metadata."""

import hashlib
import importlib
import importlib.metadata
import inspect
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
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
    detector: Detector,
    inference: dict[str, Any],
    config: str,
    checkpoint: Path,
    size: tuple[int, int] | None,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Return what a file says about itself.

    Args:
        inference: `class_names` and `resize` (see `engine.checkpoint.inference_metadata`).
        config: name of the config.
        checkpoint: file with the weights.
        size: height and width of the input; None if they are free.
        precision: fp32, fp16 or int8.
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
        precision=precision,
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
    half: bool = False,
) -> None:
    """Write a detector in the format that the file's suffix names.

    Args:
        path: ends in one of `SUFFIXES`; OpenVINO's `.xml` gets a `.bin` beside it.
        size: height and width of the input.
        metadata: values that JSON can hold.
        dynamic: let height and width vary, `size` being an example.
        grid_sample: see `ExportableDetector`.
        half: store weights in float16, see `halve`; not in `.pt2`.

    Raises:
        UserError: a package that the format needs is not installed, or the format does not support an option.
    """
    if half and path.suffix == ".pt2":
        raise UserError(f"{path.name} has float32 weights: write .onnx or .xml for float16")
    module = ExportableDetector(detector, grid_sample, dynamic)
    # a batch of 1 would be taken for a constant
    height, width = size
    inputs = torch.zeros(2, 3, height, width, dtype=torch.uint8), torch.tensor([[height, width]] * 2)
    with no_fused_attention(), torch.no_grad():
        if path.suffix == ".pt2":
            write_program(module, inputs, path, metadata, dynamic)
        else:
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                traced = Path(folder) / "traced.onnx"
                trace(module, inputs, traced, dynamic)
                save(import_package("onnx").load(traced), path, metadata, half)


def trace(module: ExportableDetector, inputs: tuple[Tensor, Tensor], path: Path, dynamic: bool) -> None:
    """Write standard operators of opset `OPSET` as ONNX, without metadata."""
    import_package("onnx")
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


def save(model: Any, path: Path, metadata: dict[str, Any], half: bool = False) -> None:
    """Write an ONNX model as ONNX or as OpenVINO IR.

    Args:
        path: ends in `.onnx` or `.xml`.
        metadata: values that JSON can hold; they replace those of the model.
        half: store weights in float16.
    """
    onnx = import_package("onnx")
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    if half:
        halve(model)
    if path.suffix == ".onnx":
        onnx.helper.set_model_props(model, texts)
        onnx.save(model, path)
        return
    openvino = import_package("openvino")
    converted = openvino.Core().read_model(io.BytesIO(model.SerializeToString()))
    for name, text in texts.items():
        converted.set_rt_info(text, ["model_info", name])
    # OpenVINO's own compression also rounds the constants of sampling locations
    openvino.save_model(converted, path, compress_to_fp16=False)


def halve(model: Any) -> None:
    """Store the matrices and kernels of an ONNX model in float16, in place.

    They are converted to float32 before they are used. ONNX Runtime, which has few float16 operators for CPUs, and
    OpenVINO do that once, when they open the file.
    """
    onnx = import_package("onnx")
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            name, stored = tensor.name, f"{tensor.name}.float16"
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), stored))
            casts.append(onnx.helper.make_node("Cast", [stored], [name], f"{stored}/Cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


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
