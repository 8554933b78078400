"""float16 and int8: what is stored, what is computed, and which parts stay in float32."""

import math

import numpy as np
import pytest
import torch

from clockdistill.errors import UserError
from clockdistill.export import ExportedDetector, compare_models, save, write_model
from clockdistill.export.quantize import PARTS, Quantizer, choose_parts, float_layers, weighted_nodes
from helpers.models import add_noise, random_batch, tiny

onnx = pytest.importorskip("onnx", reason="pip install -e .[export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e .[export]")
SIZE = (64, 96)
METADATA = dict(class_names=["cup", "fork", "knife"], resize=None, size=SIZE)
INTEGER = {"QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "QGemm"}


def images(count, seed=0):
    return [x["image"].numpy() for x in random_batch([SIZE] * count, [1] * count, seed=seed)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A detector with its file in float32, and a quantizer of it."""
    folder = tmp_path_factory.mktemp("precision")
    model = add_noise(tiny()).eval()
    write_model(model, folder / "float.onnx", SIZE, METADATA, dynamic=True)
    return folder, model, Quantizer(folder / "float.onnx", images(4), SIZE)


def dequantized(model, node):
    """Whether the input and the weight of a node come from DequantizeLinear."""
    makers = {output: other.op_type for other in model.graph.node for output in other.output}
    return [makers.get(name) == "DequantizeLinear" for name in node.input[:2]]


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_float16_is_half_the_size_and_equals_pytorch_with_rounded_weights(folder, suffix, tmp_path):
    folder, model, _ = folder
    if suffix == ".xml":
        pytest.importorskip("openvino", reason="pip install -e .[export]")
    path = tmp_path / f"half{suffix}"
    save(onnx.load(folder / "float.onnx"), path, METADATA, half=True)
    differences = compare_models(model, path, images(2), SIZE, "fp16")
    assert differences.score > 1e-7, "weights are rounded"
    if suffix == ".onnx":
        stored = onnx.load(path).graph.initializer
        matrices = [tensor for tensor in stored if len(tensor.dims) > 1 and tensor.data_type != onnx.TensorProto.INT64]
        assert {tensor.data_type for tensor in matrices} == {onnx.TensorProto.FLOAT16}
        written = sum(len(tensor.raw_data) for tensor in matrices)
        plain = sum(len(t.raw_data) for t in onnx.load(folder / "float.onnx").graph.initializer if len(t.dims) > 1)
        assert written == pytest.approx(plain / 2, rel=0.02)
    session = ExportedDetector(path)
    boxes, scores, labels = session.run(np.stack(images(1)), np.array([SIZE]))
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int64)


def test_parts_are_quantized_alone_and_the_heads_never(folder):
    _, _, quantizer = folder
    assert quantizer.parts == list(PARTS)
    for parts in (list(PARTS), ["encoder feed-forward"], [part for part in PARTS if part != "backbone"]):
        model = quantizer.quantize(parts)
        names = {name for part in parts for name in quantizer.nodes[part]}
        floating = 0
        for node in model.graph.node:
            if node.op_type in ("Conv", "Gemm", "MatMul"):
                is_quantized = node.name in names
                if is_quantized or node.name not in quantizer.nodes["neck"]:
                    assert dequantized(model, node) == [is_quantized] * 2, node.name
                floating += node.name not in names
        assert floating > 0
        assert any("box_heads" in layer for layer in float_layers(model))
        assert ("backbone/stem/conv1" in float_layers(model)) == ("backbone" not in parts)


def test_integer_kernels_run_in_both_runtimes(folder, tmp_path):
    openvino = pytest.importorskip("openvino", reason="pip install -e .[export]")
    _, _, quantizer = folder
    save(quantizer.quantize(quantizer.parts), tmp_path / "int8.onnx", METADATA)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    quantized = {name for names in quantizer.nodes.values() for name in names}
    weighted = {node.name for node in weighted_nodes(quantizer.model)} & quantized
    assert sum(node.op_type in INTEGER for node in nodes) == len(weighted)

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(tmp_path / "int8.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kernels = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    types = [str(info["primitiveType"].astype(str)) for info in kernels if "primitiveType" in info]
    layers = [str(info["layerType"].astype(str)) for info in kernels if "primitiveType" in info]
    integer = sum("I8" in kind.upper() for kind, layer in zip(types, layers) if layer.startswith(("Conv", "FullyC")))
    assert integer >= 0.9 * len(weighted)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_int8_is_close_to_pytorch(folder, suffix, tmp_path):
    _, model, quantizer = folder
    path = tmp_path / f"int8{suffix}"
    save(quantizer.quantize(quantizer.parts), path, METADATA)
    exported = ExportedDetector(path)
    for x in random_batch([SIZE] * 3, [1] * 3, seed=3):
        with torch.no_grad():
            expected = model([x])[0]["instances"].scores
        torch.testing.assert_close(exported([x])[0]["instances"].scores[:10], expected[:10], rtol=0, atol=0.1)


def test_a_dynamic_model_stays_dynamic(folder, tmp_path):
    _, _, quantizer = folder
    save(quantizer.quantize(quantizer.parts), tmp_path / "int8.onnx", METADATA | dict(size=None))
    exported = ExportedDetector(tmp_path / "int8.onnx")
    for size in (SIZE, (97, 131)):
        assert len(exported(random_batch([size], [1]))[0]["instances"]) > 0


def test_the_part_that_helps_most_returns_to_float32_first():
    loss = dict(a=0.1, b=1.0, c=0.3, d=0.2)
    choice = choose_parts(list(loss), lambda parts: 40 - sum(loss[part] for part in parts), 40)
    assert choice.float_parts == ["b", "c"]
    assert choice.ap == pytest.approx(39.7)
    assert "b + c" in choice.table
    assert choose_parts(list(loss), lambda parts: 40.0, 40.5).float_parts == []
    for useless in (39.4, math.nan):
        with pytest.raises(UserError, match="even with all but one part in float32"):
            choose_parts(list(loss), lambda parts, ap=useless: ap, 40)
