"""What all detectors share: images in, and losses or instances out, by way of encode, propose and decode."""

import math
from collections.abc import Sequence

import torch
from detectron2.modeling import Backbone, detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..layers import MLP, PositionEmbeddingSine
from .criterion import SetCriterion
from .structures import Memory, Outputs, Predictions, Queries, Target


class Detector(nn.Module):
    """A Detectron2 meta-architecture. A family fills in `propose` and `decode`, and adds to `losses`.

    Args:
        backbone: a Detectron2 backbone.
        neck: from the backbone's maps to the levels, (B, C, H_l, W_l) each; see `ChannelMapper`.
        position_embedding: of C channels.
        encoder: from levels, padding masks and position encodings to the memory.
        decoder: what the family's `decode` makes use of.
        num_classes: number of classes, background not counted.
        pixel_mean, pixel_std: of RGB images in [0, 255].
        detections_per_image: boxes kept at inference.

    Attributes:
        embed_dim: width C of memory and queries.
        num_levels: levels of the memory.
        label_embedding: class embedding (num_classes, C) that the decoder learnt to read in denoising, or None.
        encodes_boxes: whether `decode` itself makes a position encoding of the boxes of queries that bring none.
    """

    embed_dim: int
    num_levels: int
    label_embedding: nn.Embedding | None = None
    encodes_boxes: bool = True

    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: nn.Module,
        position_embedding: PositionEmbeddingSine,
        encoder: nn.Module,
        decoder: nn.Module,
        criterion: SetCriterion,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        detections_per_image: int,
    ):
        super().__init__()
        self.embed_dim = encoder.embed_dim
        self.num_levels = encoder.num_levels
        self.backbone = backbone
        self.neck = neck
        self.position_embedding = position_embedding
        self.encoder = encoder
        self.decoder = decoder
        self.criterion = criterion
        self.num_classes = num_classes
        self.detections_per_image = detections_per_image
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def strides(self) -> list[int]:
        """Pixels of the image that a cell of each of the memory's levels is wide."""
        return self.neck.strides(self.backbone.output_shape())

    def encode(self, images: ImageList) -> Memory:
        """Images to the encoder's memory."""
        features = self.neck(self.backbone(images.tensor))
        masks = padding_masks(images, [f.shape[-2:] for f in features])
        positions = [self.position_embedding(mask) for mask in masks]
        return self.encoder(features, masks, positions)

    def propose(self, memory: Memory) -> Queries:
        """Object queries."""
        raise NotImplementedError

    def decode(self, memory: Memory, queries: Queries) -> Predictions:
        """All decoder layers' answers."""
        raise NotImplementedError

    def losses(
        self, memory: Memory, queries: Queries, targets: list[Target], extra: Queries | None
    ) -> tuple[dict[str, Tensor], Outputs]:
        """Detection losses of the object queries, from one pass with the extra queries."""
        parts = [queries] if extra is None else [queries, extra]
        predictions = self.decode(memory, Queries.cat(parts)).split([len(part) for part in parts])
        losses = self.criterion(predictions[0], targets)
        return losses, Outputs(memory, predictions[0], predictions[1] if extra is not None else None)

    def forward(self, batched_inputs: list[dict], extra: Queries | None = None, with_outputs: bool = False):
        """
        Args:
            batched_inputs: Detectron2's: `image` (3, H, W) RGB in [0, 255]; in training `instances`, and `ignored`
                where there are such regions; `height` and `width` of the wanted output at inference.
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
        """Normalised images, padded on the right and below to the largest of the batch, or as the backbone asks."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        # Detectron2's Swin has the property, but not what it returns
        divisor = getattr(self.backbone, "size_divisibility", 0)
        return ImageList.from_tensors(images, divisor, padding_constraints=self.backbone.padding_constraints)

    def targets(self, batched_inputs: list[dict]) -> list[Target]:
        """Objects, and `ignored` regions, after augmentation; boxes without width or height left out."""
        targets = []
        for x in batched_inputs:
            target = make_target(x["instances"].to(self.device))
            ignored = x.get("ignored")
            targets.append(target if ignored is None else target._replace(ignored=make_target(ignored.to(self.device))))
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


def make_target(instances: Instances) -> Target:
    """Classes, and boxes relative to the image, of those that have width and height."""
    instances = instances[instances.gt_boxes.nonempty()]
    height, width = instances.image_size
    scale = instances.gt_boxes.tensor.new_tensor([width, height, width, height])
    return Target(instances.gt_classes, box_convert(instances.gt_boxes.tensor.float() / scale, "xyxy", "cxcywh"))


def padding_masks(images: ImageList, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """For every map shape (H_l, W_l), a mask (B, H_l, W_l) that is True on padding.

    A cell is padding where the pixel at its upper-left corner is, as in DETR.
    """
    mask = torch.ones(images.tensor.shape[0], *images.tensor.shape[-2:], device=images.tensor.device)
    for m, (height, width) in zip(mask, images.image_sizes, strict=True):
        m[:height, :width] = 0
    return [nn.functional.interpolate(mask[None], size=shape)[0].bool() for shape in shapes]


def make_class_head(embed_dim: int, num_classes: int) -> nn.Linear:
    """Classifier that starts from a score of 0.01 for every class (arXiv:1708.02002, Sec. 4.1)."""
    head = nn.Linear(embed_dim, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - 0.01) / 0.01))
    return head


def make_box_head(embed_dim: int) -> MLP:
    """MLP to the change of a box's logits, at first none."""
    head = MLP(embed_dim, embed_dim, 4, 3)
    nn.init.zeros_(head.layers[-1].weight)
    nn.init.zeros_(head.layers[-1].bias)
    return head
