"""Base class of the detectors: encode images, propose queries, decode them into losses or instances."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from detectron2.modeling import Backbone, detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..checks import above, checked, count, finite, numbers
from ..errors import InvalidValue, UserError
from ..layers import MLP, PositionEmbeddingSine
from .criterion import SetCriterion
from .denoising import ContrastiveDenoising
from .neck import ChannelMapper
from .structures import Memory, Outputs, Predictions, Queries, Target, Targets


class Detector(nn.Module):
    """A Detectron2 meta-architecture. A family implements `propose` and `decode`.

    Args:
        backbone: a Detectron2 backbone.
        neck: maps the backbone's features to levels (B, C, H_l, W_l); see `ChannelMapper`.
        position_embedding: with C channels.
        encoder: maps levels, padding masks and position encodings to the memory.
        decoder: used by the family's `decode`.
        criterion: the detection losses.
        num_classes: number of classes, without background.
        pixel_mean, pixel_std: of RGB images in [0, 255].
        detections_per_image: number of boxes returned at inference.

    Attributes:
        embed_dim: width C of memory and queries.
        denoising: makes denoising queries in training, or None; set by families that train with denoising.
        compiled: `predict`, after a call of `compile`, or None.
        encodes_boxes: whether `decode` computes the position encoding of queries that have no `position`.
    """

    embed_dim: int
    encodes_boxes: bool = True

    @checked(
        num_classes=count,
        detections_per_image=count,
        pixel_mean=numbers(3, finite),
        pixel_std=numbers(3, above(0)),
    )
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
        if isinstance(neck, ChannelMapper):
            try:
                neck.check_inputs(backbone.output_shape())
                num_levels = getattr(encoder, "num_levels", len(neck.convs))
                if len(neck.convs) != num_levels:
                    raise InvalidValue("num_levels", len(neck.convs), f"{num_levels}, as in the encoder")
            except InvalidValue as error:
                raise error.at("neck") from error
        self.embed_dim = encoder.embed_dim
        self.backbone = backbone
        self.neck = neck
        self.position_embedding = position_embedding
        self.encoder = encoder
        self.decoder = decoder
        self.criterion = criterion
        self.denoising: ContrastiveDenoising | None = None
        self.compiled: Callable[[Tensor, Tensor], Predictions] | None = None
        self.num_classes = num_classes
        self.detections_per_image = detections_per_image
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def strides(self) -> list[int]:
        """Stride of each level of the memory, in pixels."""
        return self.neck.strides(self.backbone.output_shape())

    @property
    def label_embedding(self) -> nn.Embedding | None:
        """Class embedding (num_classes, C) learned in denoising; None without denoising."""
        return None if self.denoising is None else self.denoising.label_embedding

    def encode(self, images: ImageList) -> Memory:
        """Run backbone, neck and encoder."""
        features = self.neck(self.backbone(images.tensor))
        masks = padding_masks(images, [f.shape[-2:] for f in features])
        positions = [self.position_embedding(mask) for mask in masks]
        return self.encoder(features, masks, positions)

    def propose(self, memory: Memory) -> Queries:
        """Return the object queries."""
        raise NotImplementedError

    def decode(self, memory: Memory, queries: Queries) -> Predictions:
        """Return the predictions of all decoder layers."""
        raise NotImplementedError

    def random_queries(self, memory: Memory, count: int) -> Queries:
        """Return queries (B, count) like the object queries, but at random places of the images.

        These are random boxes, with the content of randomly drawn object queries. Families whose content depends on the
        box override this method.
        """
        content = self.propose(memory).content
        size = len(content), count
        index = torch.randint(content.shape[1], size, device=content.device)
        content = content.gather(1, index[..., None].expand(*size, content.shape[-1]))
        return Queries(content, torch.rand(*size, 4, device=content.device))

    def decode_groups(self, memory: Memory, groups: Mapping[str, Queries]) -> dict[str, Predictions]:
        """Return the predictions for groups of queries, object queries first, from one decoder pass."""
        parts = self.decode(memory, Queries.cat(list(groups.values()))).split([len(g) for g in groups.values()])
        return dict(zip(groups, parts, strict=True))

    def proposal_targets(self, targets: Targets) -> Targets:
        """Return the targets of the encoder's proposals."""
        return targets

    def losses(
        self, memory: Memory, queries: Queries, targets: Targets, extra_queries: Mapping[str, Queries]
    ) -> tuple[dict[str, Tensor], Outputs]:
        """Run all queries through one decoder pass and compute the detection losses.

        Losses of denoising queries end in `_dn`, and those of the encoder's proposals in `_enc`.
        """
        groups = {"objects": queries}
        if self.denoising is not None:
            groups["denoising"], matches, num_groups = self.denoising(targets)
        predictions = self.decode_groups(memory, groups | dict(extra_queries))

        losses = self.criterion(predictions["objects"], targets)
        if self.denoising is not None:
            losses |= self.criterion(
                predictions["denoising"],
                targets,
                "_dn",
                matches=matches,
                padding=groups["denoising"].padding,
                repeats=num_groups,
            )
        if queries.proposals is not None:
            losses |= self.criterion(queries.proposals, self.proposal_targets(targets), "_enc")
        return losses, Outputs(memory, predictions["objects"], {name: predictions[name] for name in extra_queries})

    def forward(
        self,
        batched_inputs: list[dict],
        targets: Targets | None = None,
        extra_queries: Mapping[str, Queries] | None = None,
        with_outputs: bool = False,
    ):
        """
        Args:
            batched_inputs: Detectron2's format: `image` (3, H, W) RGB in [0, 255]; in training `instances`, and
                `ignored` if there are ignored regions; at inference `height` and `width` of the output.
            targets: `self.targets(batched_inputs)`, if already computed; training only.
            extra_queries: additional groups of decoder queries by name, in training. A group attends to itself alone
                and does not affect the detector's own queries. The names `objects` and `denoising` are taken.
            with_outputs: return `(losses, Outputs)` in training.

        Returns:
            In training a dictionary of losses, else a list of `{"instances": Instances}`.
        """
        images = self.preprocess(batched_inputs)
        if not self.training:
            # fvcore cannot trace a compiled function
            predict = self.predict if self.compiled is None or torch.jit.is_tracing() else self.compiled
            predictions = predict(images.tensor, tensor_of_sizes(images))
            return self.postprocess(predictions, batched_inputs, images.image_sizes)
        memory = self.encode(images)
        queries = self.propose(memory)
        if targets is None:
            targets = self.targets(batched_inputs)
        losses, outputs = self.losses(memory, queries, targets, extra_queries or {})
        return (losses, outputs) if with_outputs else losses

    def predict(self, images: Tensor, sizes: Tensor) -> Predictions:
        """Return the predictions of all decoder layers.

        Args:
            images: (B, 3, H, W), normalized and padded.
            sizes: (B, 2), height and width of each image without padding.
        """
        memory = self.encode(ImageList(images, sizes))
        return self.decode(memory, self.propose(memory))

    def compile(self, **options) -> None:
        """Let `torch.compile` compile `predict`, for each size of padded images when it first occurs.

        Args:
            options: arguments of `torch.compile`.
        """
        self.compiled = torch.compile(self.predict, dynamic=False, **options)

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        """Normalize the images, and pad them; see `pad`."""
        return self.pad([(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs])

    def pad(self, images: list[Tensor]) -> ImageList:
        """Pad images (3, H, W) at the right and bottom to the size of the largest one.

        The backbone's `size_divisibility` and `padding_constraints` are respected.
        """
        # Detectron2's Swin declares the property but fails to compute it
        divisor = getattr(self.backbone, "size_divisibility", 0)
        return ImageList.from_tensors(images, divisor, padding_constraints=self.backbone.padding_constraints)

    def targets(self, batched_inputs: list[dict]) -> Targets:
        """Return the objects and ignored regions after augmentation, without empty boxes."""
        targets = []
        for x in batched_inputs:
            target = make_target(x["instances"].to(self.device))
            ignored = x.get("ignored")
            targets.append(target if ignored is None else target._replace(ignored=make_target(ignored.to(self.device))))
        return Targets(targets)

    def joint_targets(self, batches: Sequence[list[dict]]) -> list[Targets]:
        """Return the targets of batches of equal size that share an optimizer step.

        The mean of the batches' losses is the loss of the joint batch, if all images have the same size.
        """
        parts = [self.targets(batch) for batch in batches]
        num_objects = self.criterion.joint_normalizer(parts)
        for targets in parts:
            targets.num_objects = num_objects
        return parts

    def top_detections(self, predictions: Predictions) -> tuple[Tensor, Tensor, Tensor]:
        """Return the `detections_per_image` highest-scoring (query, class) pairs of the last layer, best first.

        Returns:
            boxes (B, N, 4) as (x1, y1, x2, y2) in [0, 1] of the image, scores (B, N) and labels (B, N).
        """
        scores = predictions.logits[-1].float().sigmoid().flatten(1)
        # a NaN is greater than any number, so that the best scores have all of them
        scores, index = scores.topk(min(self.detections_per_image, scores.shape[1]))
        query, labels = index // self.num_classes, index % self.num_classes
        boxes = predictions.boxes[-1].float().gather(1, query[..., None].expand(-1, -1, 4))
        return box_convert(boxes, "cxcywh", "xyxy"), scores, labels

    def postprocess(
        self, predictions: Predictions, batched_inputs: list[dict], image_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Instances]]:
        """Return the highest-scoring (query, class) pairs of the last layer, scaled to the output size."""
        boxes, scores, labels = self.top_detections(predictions)
        if not scores.isfinite().all():
            raise UserError(
                "the model's scores are NaN or infinite: use an earlier checkpoint, or train with a lower optimizer.lr"
            )
        results = []
        for i, ((height, width), inputs) in enumerate(zip(image_sizes, batched_inputs, strict=True)):
            instances = Instances((height, width))
            instances.pred_boxes = Boxes(boxes[i] * boxes.new_tensor([width, height, width, height]))
            instances.scores = scores[i]
            instances.pred_classes = labels[i]
            output_size = inputs.get("height", height), inputs.get("width", width)
            results.append({"instances": detector_postprocess(instances, *output_size)})
        return results


def make_target(instances: Instances) -> Target:
    """Return the classes and normalized boxes of the instances that are not empty."""
    instances = instances[instances.gt_boxes.nonempty()]
    height, width = instances.image_size
    scale = instances.gt_boxes.tensor.new_tensor([width, height, width, height])
    return Target(instances.gt_classes, box_convert(instances.gt_boxes.tensor.float() / scale, "xyxy", "cxcywh"))


def tensor_of_sizes(images: ImageList) -> Tensor:
    """Return height and width of each image without padding, (B, 2)."""
    sizes = images.image_sizes
    if isinstance(sizes, Tensor):
        return sizes
    return torch.tensor([tuple(size) for size in sizes]).to(images.tensor.device, non_blocking=True)


def padding_masks(images: ImageList, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Return one mask (B, H_l, W_l) per level shape (H_l, W_l), True on padding.

    As in DETR, a cell is padding if the pixel at its upper-left corner is. `image_sizes` may also be a tensor (B, 2).
    """
    sizes = tensor_of_sizes(images)
    masks = []
    for shape in shapes:
        # the pixels that `interpolate` would take, in its arithmetic
        rows, columns = (
            (torch.arange(cells, device=sizes.device, dtype=torch.float32) * (pixels / cells)).floor()
            for cells, pixels in zip(shape, images.tensor.shape[-2:], strict=True)
        )
        masks.append((rows >= sizes[:, :1])[:, :, None] | (columns >= sizes[:, 1:])[:, None])
    return masks


def make_class_head(embed_dim: int, num_classes: int) -> nn.Linear:
    """Return a classifier whose initial score is 0.01 for every class (arXiv:1708.02002, Sec. 4.1)."""
    head = nn.Linear(embed_dim, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - 0.01) / 0.01))
    return head


def make_box_head(embed_dim: int) -> MLP:
    """Return an MLP that predicts the change of a box's logits, initially zero."""
    head = MLP(embed_dim, embed_dim, 4, 3)
    nn.init.zeros_(head.layers[-1].weight)
    nn.init.zeros_(head.layers[-1].bias)
    return head


def repeat(module: nn.Module, count: int) -> nn.ModuleList:
    """Return a list of independent copies."""
    return nn.ModuleList(copy.deepcopy(module) for _ in range(count))
