"""What all detectors share: images in, and losses or instances out, by way of encode, propose and decode."""

from collections.abc import Sequence

import torch
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from .structures import Memory, Outputs, Predictions, Queries, Target


class Detector(nn.Module):
    """A Detectron2 meta-architecture. A family fills in `encode`, `propose`, `decode` and `losses`.

    Args:
        num_classes: number of classes, background not counted.
        pixel_mean, pixel_std: of RGB images in [0, 255].
        detections_per_image: boxes kept at inference.

    Attributes:
        embed_dim: width C of memory and queries.
        num_levels: levels of the memory.
        label_embedding: class embedding (num_classes, C) that the decoder learnt to read in denoising, or None.
    """

    embed_dim: int
    num_levels: int
    label_embedding: nn.Embedding | None = None

    def __init__(
        self, num_classes: int, pixel_mean: Sequence[float], pixel_std: Sequence[float], detections_per_image: int
    ):
        super().__init__()
        self.num_classes = num_classes
        self.detections_per_image = detections_per_image
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def encode(self, images: ImageList) -> Memory:
        raise NotImplementedError

    def propose(self, memory: Memory) -> Queries:
        raise NotImplementedError

    def decode(self, memory: Memory, queries: Queries) -> Predictions:
        raise NotImplementedError

    def losses(
        self, memory: Memory, queries: Queries, targets: list[Target], extra: Queries | None
    ) -> tuple[dict[str, Tensor], Outputs]:
        """Detection losses of the object queries and of the family's own, from one pass with the extra queries."""
        raise NotImplementedError

    def forward(self, batched_inputs: list[dict], extra: Queries | None = None, with_outputs: bool = False):
        """
        Args:
            batched_inputs: Detectron2's: `image` (3, H, W) RGB in [0, 255]; `instances` in training; `height` and
                `width` of the wanted output at inference.
            extra: further queries for the decoder, in training; they change nothing for the detector's own.
            with_outputs: return `(losses, Outputs)` in training.

        Returns:
            In training a dictionary of losses, else a list of `{"instances": Instances}`.
        """
        images = self.preprocess(batched_inputs)
        memory = self.encode(images)
        queries = self.propose(memory)
        if self.training:
            losses, outputs = self.losses(memory, queries, self.targets(batched_inputs), extra)
            return (losses, outputs) if with_outputs else losses
        predictions = self.decode(memory, queries)
        return self.postprocess(predictions, batched_inputs, images.image_sizes)

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        """Normalised images, padded on the right and below to the largest of the batch."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(images)

    def targets(self, batched_inputs: list[dict]) -> list[Target]:
        """Objects after augmentation, boxes without width or height left out."""
        targets = []
        for instances in (x["instances"].to(self.device) for x in batched_inputs):
            instances = instances[instances.gt_boxes.nonempty()]
            height, width = instances.image_size
            scale = torch.tensor([width, height, width, height], device=self.device)
            boxes = box_convert(instances.gt_boxes.tensor.float() / scale, "xyxy", "cxcywh")
            targets.append(Target(instances.gt_classes, boxes))
        return targets

    def postprocess(
        self, predictions: Predictions, batched_inputs: list[dict], image_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Instances]]:
        """The best (query, class) pairs of the last layer as instances in the images' own size."""
        scores = predictions.logits[-1].float().sigmoid().flatten(1)
        scores, index = scores.topk(min(self.detections_per_image, scores.shape[1]))
        query, label = index // self.num_classes, index % self.num_classes
        boxes = predictions.boxes[-1].float().gather(1, query[..., None].expand(-1, -1, 4))
        boxes = box_convert(boxes, "cxcywh", "xyxy")
        results = []
        for i, ((height, width), inputs) in enumerate(zip(image_sizes, batched_inputs, strict=True)):
            instances = Instances((height, width))
            instances.pred_boxes = Boxes(boxes[i] * boxes.new_tensor([width, height, width, height]))
            instances.scores = scores[i]
            instances.pred_classes = label[i]
            wanted = inputs.get("height", height), inputs.get("width", width)
            results.append({"instances": detector_postprocess(instances, *wanted)})
        return results


def padding_masks(images: ImageList, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """For every map shape (H_l, W_l), a mask (B, H_l, W_l) that is True on padding.

    A cell is padding where the pixel at its upper-left corner is, as in DETR.
    """
    mask = torch.ones(images.tensor.shape[0], *images.tensor.shape[-2:], device=images.tensor.device)
    for m, (height, width) in zip(mask, images.image_sizes, strict=True):
        m[:height, :width] = 0
    return [nn.functional.interpolate(mask[None], size=shape)[0].bool() for shape in shapes]
