"""Exported files, run by their runtimes, equal the detector in PyTorch."""

import json

import pytest
import torch
from detectron2.structures import ImageList

from clockdistill.errors import UserError
from clockdistill.export import ExportableDetector, ExportedDetector, compare_models, write_model
from clockdistill.export import compare as comparison
from clockdistill.export.sampling import by_gather, by_grid_sample
from clockdistill.layers import ms_deform_attn
from clockdistill.modeling.detector import padding_masks
from helpers.models import VARIANTS, add_noise, random_batch, tiny

SIZE = (64, 96)
METADATA = dict(class_names=["cup", "fork", "knife"], resize=None, size=SIZE)
RUNTIMES = {".onnx": ("onnx", "onnxruntime"), ".xml": ("onnx", "openvino"), ".pt2": ()}


def detector(variant="dino"):
    return add_noise(tiny(variant)).eval()


def write(model, path, **kwargs):
    for package in RUNTIMES[path.suffix]:
        pytest.importorskip(package, reason=f"{path.suffix} needs {package}: pip install -e .[export]")
    write_model(model, path, SIZE, METADATA | dict(size=None if kwargs.get("dynamic") else SIZE), **kwargs)
    return path


def images(*sizes):
    return [x["image"].numpy() for x in random_batch(sizes=sizes, counts=[1] * len(sizes))]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("grid_sample", ["native", "gather"])
def test_the_exported_function_equals_the_detector_on_a_padded_batch(variant, grid_sample):
    model = detector(variant)
    batch = random_batch(sizes=((64, 96), (50, 80)))
    padded = torch.full((2, 3, *SIZE), 255, dtype=torch.uint8)  # what is in the padding does not matter
    for image, x in zip(padded, batch):
        image[:, : x["height"], : x["width"]] = x["image"]
    sizes = torch.tensor([[x["height"], x["width"]] for x in batch])
    with torch.no_grad():
        expected = model(batch)
        outputs = ExportableDetector(model, grid_sample)(padded, sizes)
    for boxes, scores, labels, x in zip(*outputs, expected):
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
        torch.testing.assert_close(boxes[keep], x["instances"].pred_boxes.tensor, rtol=0, atol=1e-3)
        torch.testing.assert_close(scores[keep], x["instances"].scores, rtol=0, atol=1e-6)
        assert labels[keep].tolist() == x["instances"].pred_classes.tolist()


@pytest.mark.parametrize(
    "padding",
    [("size_divisibility", 64), ("padding_constraints", {"square_size": 100, "size_divisibility": 32})],
    ids=["divisible", "square"],
)
def test_the_exported_function_pads_as_the_backbone_needs(padding):
    model = detector()
    plain = model.preprocess(random_batch(sizes=(SIZE,), counts=(1,))).tensor.shape
    model.backbone.__class__ = type("PaddedResNet", (type(model.backbone),), dict([padding]))
    batch = random_batch(sizes=(SIZE,), counts=(1,))
    assert model.preprocess(batch).tensor.shape != plain
    with torch.no_grad():
        (expected,) = model(batch)
        boxes, scores, labels = ExportableDetector(model)(batch[0]["image"][None], torch.tensor([SIZE]))
    keep = (boxes[0, :, 2:] > boxes[0, :, :2]).all(1)
    torch.testing.assert_close(boxes[0][keep], expected["instances"].pred_boxes.tensor, rtol=0, atol=1e-3)
    torch.testing.assert_close(scores[0][keep], expected["instances"].scores, rtol=0, atol=1e-6)
    assert labels[0][keep].tolist() == expected["instances"].pred_classes.tolist()


@pytest.mark.parametrize("operator", [by_grid_sample, by_gather])
def test_standard_operators_equal_deformable_attention(operator):
    shapes = [(5, 7), (3, 4), (1, 1)]
    value = torch.randn(2, sum(h * w for h, w in shapes), 4, 8)
    # many points at borders, outside, and far outside
    locations = torch.randn(2, 9, 4, 3, 2, 2) * 2 + 0.5
    locations[:, 0] = torch.randint(-1, 3, locations[:, 0].shape).float()
    locations[:, 1] *= 1e8
    weights = torch.rand(2, 9, 4, 3, 2)
    expected = ms_deform_attn(value, torch.tensor(shapes), torch.tensor([0, 35, 47]), locations, weights)
    cells = locations * torch.tensor(shapes).flip(-1)[:, None]
    output = operator(value, shapes, cells.flatten(3), weights.flatten(3))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_padding_masks_take_the_pixels_of_nearest_interpolation():
    for height, cells in [(h, -(-h // s)) for h in range(1, 1400, 7) for s in (4, 8, 16, 32, 64)]:
        mask = torch.ones(1, 1, height, 3)
        mask[:, :, : (height + 1) // 2] = 0
        expected = torch.nn.functional.interpolate(mask, size=(cells, 1))[0].bool()
        masks = padding_masks(ImageList(torch.zeros(1, 3, height, 3), [((height + 1) // 2, 3)]), [(cells, 1)])
        assert torch.equal(masks[0], expected), (height, cells)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_equals_pytorch_in_onnx_and_openvino(variant, tmp_path):
    model = detector(variant)
    path = write(model, tmp_path / "model.onnx")
    openvino = pytest.importorskip("openvino", reason="pip install -e .[export]")
    # as `write_openvino` does, without exporting twice
    openvino.save_model(openvino.Core().read_model(path), tmp_path / "model.xml", compress_to_fp16=False)
    for file in (path, tmp_path / "model.xml"):
        # the third is larger than the model's input
        differences = compare_models(model, file, images((64, 96), (50, 80), (70, 96)), SIZE)
        assert differences.box < 1e-3
        assert differences.score < 1e-5
        assert differences.images == 3


# torch.export takes several seconds per decoder layer
@pytest.mark.parametrize("variant", VARIANTS)
def test_torch_export_equals_pytorch(variant, tmp_path):
    model = add_noise(tiny(variant, decoder_layers=1)).eval()
    path = write(model, tmp_path / "model.pt2")
    assert compare_models(model, path, images((64, 96), (50, 80)), SIZE).box < 1e-3


@pytest.mark.parametrize("grid_sample", ["native", "gather"])
def test_dynamic_models_take_any_size(grid_sample, tmp_path):
    model = detector()
    path = write(model, tmp_path / "model.onnx", dynamic=True, grid_sample=grid_sample)
    assert compare_models(model, path, images((64, 96), (97, 131)), None).box < 1e-3
    operators = {node.op_type for node in pytest.importorskip("onnx").load(path).graph.node}
    assert ("GridSample" in operators) == (grid_sample == "native")


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_exported_detectors_replace_the_detector(suffix, tmp_path):
    model = detector()
    exported = ExportedDetector(write(model, tmp_path / f"model{suffix}"))
    assert exported.metadata == json.loads(json.dumps(METADATA))
    assert exported.file_size == sum(path.stat().st_size for path in tmp_path.iterdir())
    batch = random_batch()
    for x in batch:
        x.update(height=128, width=192)
    with torch.no_grad():
        expected = model(batch)
    for a, b in zip(exported(batch), expected):
        torch.testing.assert_close(
            a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor, rtol=0, atol=1e-2
        )
        torch.testing.assert_close(a["instances"].scores, b["instances"].scores, rtol=0, atol=1e-5)


def test_a_file_with_other_weights_is_an_error(tmp_path):
    model = detector()
    path = write(model, tmp_path / "model.onnx")
    other = add_noise(detector(), seed=5, scale=1e-3)
    with pytest.raises(UserError, match="does not compute what PyTorch computes"):
        compare_models(other, path, images((64, 96)), SIZE)
    with pytest.raises(UserError, match="no images to compare"):
        compare_models(model, path, [], SIZE)


def test_rankings_must_rank_pytorch_s_scores():
    scores = torch.tensor([[0.1, 0.9, 0.9 + 1e-6]])
    with comparison.GivenRankings([torch.tensor([[1, 2]])], 1e-4):
        values, indices = scores.topk(2)
    assert indices.tolist() == [[1, 2]]
    assert values.tolist() == scores[:, 1:].tolist()
    for wrong in ([[0, 1]], [[1, 1]]):
        with (
            pytest.raises(UserError, match="ranks scores differently"),
            comparison.GivenRankings([torch.tensor(wrong)], 1e-4),
        ):
            scores.topk(2)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("model.pth", "its name must end in .onnx, .xml, .pt2"),
        ("nowhere.onnx", "nowhere.onnx does not exist"),
        ("foreign.onnx", "cannot be opened by ONNX Runtime"),
        ("foreign.pt2", "cannot be opened by torch.export"),
        ("alone.xml", "alone.bin does not exist"),
    ],
)
def test_files_that_are_not_exported_models(name, sentence, tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install -e .[export]")
    for other in ("foreign.onnx", "foreign.pt2", "alone.xml", "model.pth"):
        (tmp_path / other).write_text("no model")
    with pytest.raises(UserError, match=sentence):
        ExportedDetector(tmp_path / name)
