"""Compare an exported file, run by its runtime, with the detector in PyTorch.

A detector ranks its proposals and its detections by score. If two scores differ by less than rounding, their order is
arbitrary, and in DINO the rank of a proposal decides which content it gets: two correct runtimes may disagree about
whole objects. Therefore PyTorch uses the runtime's rankings, after a check that they rank PyTorch's own scores to
within rounding. Then all detections are compared, one by one.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import ImageList
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import UserError
from ..modeling import Detector
from .runtime import fit, open_openvino_model, open_program, open_session, pad
from .write import OUTPUTS, import_package


class Tolerance(NamedTuple):
    """Largest differences allowed in box coordinates, in pixels, and in scores."""

    box: float
    score: float


TOLERANCES = {"fp32": Tolerance(1e-2, 1e-4), "fp16": Tolerance(1.0, 1e-2)}


class Differences(NamedTuple):
    """Largest differences in box coordinates, in pixels, and in scores; the number of images and of detections."""

    box: float
    score: float
    images: int
    detections: int

    def __str__(self) -> str:
        return f"boxes differ by up to {self.box:.1g} px and scores by up to {self.score:.1g}"


def compare_models(
    detector: Detector,
    path: Path,
    images: Iterable[np.ndarray],
    size: tuple[int, int] | None,
    precision: str = "fp32",
) -> Differences:
    """Compare all detections on images (3, h, w), uint8 RGB.

    Args:
        detector: in eval mode.
        size: height and width that the images are padded to; None for their own size.
        precision: of the file, one of `TOLERANCES`.

    Raises:
        UserError: boxes, scores, labels or rankings differ by more than the tolerance, or there are no images.
    """
    run = {".onnx": run_onnx, ".xml": run_openvino, ".pt2": run_program}[path.suffix](path)
    tolerance = TOLERANCES[precision]
    box, score, count, detections = 0.0, 0.0, 0, 0
    for image in images:
        batch, sizes = pad([image if size is None else fit(image, *size)], size)
        outputs, rankings = run(batch, sizes)
        boxes, scores, labels = map(torch.as_tensor, outputs)
        expected = reference(
            detector, torch.from_numpy(batch), torch.from_numpy(sizes), GivenRankings(rankings, tolerance.score)
        )
        if not torch.equal(labels, expected[2]):
            raise UserError(f"{path.name} does not compute what PyTorch computes: the labels differ")
        box = max(box, distance(boxes, expected[0]))
        score = max(score, distance(scores, expected[1]))
        count, detections = count + 1, detections + scores.shape[1]
    if not count:
        raise UserError("there are no images to compare the exported model with PyTorch: pass some with --images")
    differences = Differences(box, score, count, detections)
    # a comparison with NaN is false
    if not (box <= tolerance.box and score <= tolerance.score):
        raise UserError(
            f"{path.name} does not compute what PyTorch computes: {differences}, and {tolerance.box:g} px and "
            f"{tolerance.score:g} are allowed; try another format or --grid-sample gather"
        )
    return differences


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@torch.no_grad()
def reference(detector: Detector, images: Tensor, sizes: Tensor, rankings: "GivenRankings") -> tuple[Tensor, ...]:
    """Detect on a padded batch by the detector's own steps; return boxes, scores and labels, on the CPU."""
    pixels = torch.zeros(images.shape, device=detector.device)
    for padded, image, (height, width) in zip(pixels, images, sizes.tolist(), strict=True):
        normalized = (image[:, :height, :width].to(padded) - detector.pixel_mean) / detector.pixel_std
        padded[:, :height, :width] = normalized
    padded = detector.pad(list(pixels)).tensor
    with rankings:
        memory = detector.encode(ImageList(padded, [tuple(size) for size in sizes.tolist()]))
        predictions = detector.decode(memory, detector.propose(memory))
        boxes, scores, labels = (x.cpu() for x in detector.top_detections(predictions))
    limits = sizes.flip(-1).repeat(1, 2)[:, None]
    return (boxes * limits).clamp(min=0).minimum(limits.to(boxes)), scores, labels


class GivenRankings(TorchFunctionMode):
    """Lets every `topk` return given indices, in the order of the calls.

    Raises:
        UserError: the indices are not those of the highest values, to within the tolerance.
    """

    def __init__(self, rankings: list[Tensor], tolerance: float):
        super().__init__()
        self.rankings = list(rankings)
        self.tolerance = tolerance

    def __torch_function__(self, function, types, args=(), kwargs=None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is not torch.Tensor.topk:
            return result
        indices = self.rankings.pop(0).to(result.indices)
        values = args[0].gather(-1, indices)
        distinct = indices.sort(-1).values.diff(dim=-1).ne(0).all()
        if not (distinct and (values - result.values).abs().max() <= self.tolerance):
            raise UserError("the exported model does not compute what PyTorch computes: it ranks scores differently")
        return type(result)((values, indices))


def run_onnx(path: Path):
    """Return a function that runs a file and also returns the indices of every TopK."""
    onnx = import_package("onnx")
    model = onnx.load(path)
    names = [node.output[1] for node in model.graph.node if node.op_type == "TopK"]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in names)
    session = open_session(model.SerializeToString())

    def run(images: np.ndarray, sizes: np.ndarray) -> tuple[list, list[Tensor]]:
        outputs = session.run([*OUTPUTS, *names], {"images": images, "sizes": sizes})
        return outputs[:3], [torch.from_numpy(x) for x in outputs[3:]]

    return run


def run_openvino(path: Path):
    """Return a function that runs a file and also returns the indices of every TopK."""
    openvino = import_package("openvino")
    model = openvino.Core().read_model(path)
    model.add_outputs([op.output(1) for op in model.get_ordered_ops() if op.get_type_name() == "TopK"])
    compiled = open_openvino_model(model)

    def run(images: np.ndarray, sizes: np.ndarray) -> tuple[list, list[Tensor]]:
        outputs = [x.copy() for x in compiled([images, sizes]).values()]
        return outputs[:3], [torch.from_numpy(x) for x in outputs[3:]]

    return run


def run_program(path: Path):
    """Return a function that runs a file and also returns the indices of every topk."""
    run, _ = open_program(path)

    def run_and_record(images: np.ndarray, sizes: np.ndarray) -> tuple[list, list[Tensor]]:
        with RecordedRankings() as recorded:
            outputs = run(images, sizes)
        return outputs, recorded.rankings

    return run_and_record


class RecordedRankings(TorchDispatchMode):
    """Records the indices that every `topk` returns."""

    def __init__(self):
        super().__init__()
        self.rankings: list[Tensor] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.topk.default:
            self.rankings.append(result[1])
        return result
