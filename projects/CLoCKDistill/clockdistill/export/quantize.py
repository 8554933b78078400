"""Static quantization of a detector in ONNX to int8 (arXiv:1712.05877), by QuantizeLinear and DequantizeLinear.

Both ONNX Runtime and OpenVINO replace these nodes around a layer by an integer kernel. Activations are uint8, and
weights int8 with a scale per channel: the dot products of x86 processors (VNNI) take these types. Convolutions and
products with constant matrices are quantized in `PARTS`; heads, anchor boxes, norms, softmax, sampling and products of
activations stay in float32.
"""

import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from ..errors import UserError
from .runtime import fit, pad
from .write import import_package, quiet

# by the names of their nodes, which begin with the path of the module
PARTS = {
    "backbone": r"/backbone/",
    "neck": r"/neck/",
    "encoder attention": r"/encoder/layers\.\d+/self_attn/",
    "encoder feed-forward": r"/encoder/layers\.\d+/ffn/",
    "decoder attention": r"/decoder/layers\.\d+/(self|cross)_attn/",
    "decoder feed-forward": r"/decoder/layers\.\d+/ffn/",
}
WEIGHTED = ("Conv", "Gemm", "MatMul")
# between convolutions, so that activations stay in int8
BETWEEN, AFTER = ("Add", "MaxPool", "Relu"), {"Conv", "Relu", "Add"}
MAX_LOSS = 0.5  # AP


class Quantizer:
    """Quantizes any parts of a model to the ranges of activations that it has on given images.

    Args:
        path: the ONNX file in float32.
        images: (3, h, w), uint8 RGB.
        size: height and width that the images are padded to; None for their own size.

    Attributes:
        parts: those of `PARTS` that the model has.
    """

    def __init__(self, path: Path, images: Iterable[np.ndarray], size: tuple[int, int] | None):
        onnx = import_package("onnx")
        import_package("onnxruntime")
        from onnxruntime.quantization.calibrate import create_calibrator
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory() as folder, quiet("root"):
            # names shared weights once, and folds what does not depend on the image
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(path, prepared, skip_symbolic_shape=True)
            self.model = onnx.load(prepared)
            calibrator = create_calibrator(
                prepared, [*WEIGHTED, *BETWEEN], augmented_model_path=str(Path(folder) / "calibrated.onnx")
            )
            calibrator.collect_data(Inputs(images, size))
            self.ranges = calibrator.compute_data()
        used = {node.domain for node in self.model.graph.node}
        opsets = [opset for opset in self.model.opset_import if opset.domain in used]
        del self.model.opset_import[:]
        self.model.opset_import.extend(opsets)
        self.nodes = {part: self.nodes_of(pattern) for part, pattern in PARTS.items()}
        self.parts = [part for part, nodes in self.nodes.items() if nodes]

    def nodes_of(self, pattern: str) -> list[str]:
        """Return the names of the nodes to quantize whose names match."""
        makers = {output: node.op_type for node in self.model.graph.node for output in node.output}
        weighted = {node.name for node in weighted_nodes(self.model)}
        return [
            node.name
            for node in self.model.graph.node
            if re.match(pattern, node.name)
            and (node.name in weighted or (node.op_type in BETWEEN and {makers.get(x) for x in node.input} & AFTER))
        ]

    def quantize(self, parts: Sequence[str]) -> Any:
        """Return an ONNX model with these parts in int8."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        model = type(self.model)()
        model.CopyFrom(self.model)
        nodes = [name for part in parts for name in self.nodes[part]]
        with quiet("root"):
            quantizer = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self.ranges,
                nodes_to_quantize=nodes,
                nodes_to_exclude=[],
                op_types_to_quantize=[*WEIGHTED, *BETWEEN],
                extra_options={
                    "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
                    # norms and sums follow, which are in float
                    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                },
            )
            quantizer.quantize_model()
        restore_inputs(quantizer.model.model, set(nodes))
        return quantizer.model.model


def restore_inputs(model: Any, quantized: set[str]) -> None:
    """Let float nodes read activations in float32 again, in place: the quantizer rounds them for every reader."""
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.name in quantized or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for i, name in enumerate(node.input):
            if name not in makers or makers[name].op_type != "DequantizeLinear":
                continue
            quantize = makers.get(makers[name].input[0])
            if quantize is None:  # a constant that a quantized node reads too
                continue
            source = quantize.input[0]
            # the output of an integer kernel is rounded
            if source not in makers or makers[source].name not in quantized:
                node.input[i] = source


def weighted_nodes(model: Any) -> Iterator[Any]:
    """Yield convolutions, and products with a constant matrix, in float32."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in WEIGHTED and node.input[1] in constants:
            yield node


def float_layers(model: Any) -> list[str]:
    """Return the paths of the modules with convolutions or matrices that are not quantized."""
    return sorted({node.name.strip("/").rpartition("/")[0] for node in weighted_nodes(model)})


class Inputs:
    """ONNX Runtime's `CalibrationDataReader`, with a progress bar."""

    def __init__(self, images: Iterable[np.ndarray], size: tuple[int, int] | None):
        self.images = iter(tqdm(images, "calibration", leave=False))
        self.size = size

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        if image is None:
            return None
        batch, sizes = pad([image if self.size is None else fit(image, *self.size)], self.size)
        return dict(images=batch, sizes=sizes)


class Choice(NamedTuple):
    """The parts that stay in float32, the AP with all others quantized, and what was measured, as a table."""

    float_parts: list[str]
    ap: float
    table: str


def choose_parts(
    parts: Sequence[str], measure: Callable[[Sequence[str]], float], float_ap: float, max_loss: float = MAX_LOSS
) -> Choice:
    """Quantize as many parts as possible with a loss of at most `max_loss`.

    Starts with all parts, and puts the part back to float32 that helps most, as long as the loss is too large.

    Args:
        measure: returns the AP with the given parts quantized.
        float_ap: with none of them.

    Raises:
        UserError: the loss is too large even with one part.
    """
    floating: list[str] = []
    rows: list[tuple] = [("none", ap := measure(parts))]
    while not float_ap - ap <= max_loss:
        left = [part for part in parts if part not in floating]
        if len(left) <= 1:
            raise UserError(
                f"int8 loses more than {max_loss} AP even with all but one part in float32: use --precision fp16, or "
                "calibrate on other images"
            )
        trials = {part: measure([x for x in left if x != part]) for part in left}
        rows += [(" + ".join([*floating, part]), trial) for part, trial in trials.items()]
        best = max(trials, key=lambda part: -math.inf if math.isnan(trials[part]) else trials[part])
        floating, ap = [*floating, best], trials[best]
    table = tabulate(rows, ["in float32", "AP"], tablefmt="pipe", floatfmt=".2f")
    return Choice(floating, ap, table)
