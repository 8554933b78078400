"""Feature distillation methods to compare with: FitNets, FGD and MGD.

They compare feature pyramids. Each level has an adaptation layer and blocks of its own, as in the authors' code of FGD
and MGD, with which their losses were compared. Sums over cells leave out padding. FGD's and MGD's equation numbers have
not been checked against the papers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import above, checked, fraction, not_negative
from ..layers import at_least_float32
from ..modeling import Detector, Outputs, Targets
from .memory import FeatureLoss, location_and_scale_weights


class LevelwiseLoss(FeatureLoss):
    """Base class of losses whose modules are not shared by the levels.

    Attributes:
        projection: one linear layer for each level, or the identity if the widths are equal.
    """

    def build(self, teacher: Detector, student: Detector) -> None:
        def adaptation() -> nn.Module:
            if student.embed_dim == teacher.embed_dim:
                return nn.Identity()
            return nn.Linear(student.embed_dim, teacher.embed_dim)

        self.projection = nn.ModuleList(adaptation() for _ in range(self.num_levels))

    def project(self, student: Outputs) -> Tensor:
        levels = student.memory.split(self.maps(student))
        return torch.cat([layer(level) for layer, level in zip(self.projection, levels, strict=True)], 1)


class FitNetsLoss(LevelwiseLoss):
    """Hint loss of FitNets (arXiv:1412.6550), Eq. 3, with a 1x1 convolution as the regressor.

    It is half the squared distance of the maps, summed over levels, cells and channels, and averaged over images. It is
    zero if the maps are equal.

    The paper has two stages: it first trains the student's layers up to the hint with this loss alone, then all layers
    with the teacher's softened outputs, Eq. 2, and without the hint. Here the hint loss is added to the detection loss
    throughout.

    Args:
        weight: factor of the loss. The paper needs none.
        feature: see `FeatureLoss`.
    """

    @checked(weight=not_negative)
    def __init__(self, weight: float, feature: str = "backbone"):
        super().__init__(feature)
        self.weight = weight

    def forward(self, teacher: Outputs, student: Outputs, targets: Targets) -> dict[str, Tensor]:
        distance = self.squared_distance(teacher, student).masked_fill(teacher.memory.padding_mask, 0)
        return {"hint": self.weight / 2 * distance.sum() / len(targets)}


def attention_masks(x: Tensor, padding: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return FGD's attention of cells and channels, Eq. 5 to 8. Their means, over cells without padding, are one.

    Args:
        x: (B, n, C), one level.
        padding: (B, n), True on padding.

    Returns:
        spatial (B, n), zero on padding, and channel (B, C).
    """
    size = (~padding).sum(1, keepdim=True)
    magnitude = x.abs().masked_fill(padding[..., None], 0)
    spatial = (magnitude.mean(-1) / temperature).masked_fill(padding, -torch.inf).softmax(1) * size
    channel = (magnitude.sum(1) / size / temperature).softmax(1) * x.shape[-1]
    return spatial, channel


class GlobalContext(nn.Module):
    """Global context block (arXiv:1904.11492) as in FGD, Eq. 13: adds a transformed weighted mean of all cells to each.

    It is the identity at first, because its last layer is initialized with zeros.
    """

    def __init__(self, channels: int):
        super().__init__()
        # a bias would cancel in the softmax
        self.score = nn.Linear(channels, 1, bias=False)
        hidden = channels // 2
        self.transform = nn.Sequential(
            nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        nn.init.kaiming_normal_(self.score.weight)
        for parameter in self.transform[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """Map one level (B, n, C) with padding mask (B, n) to the same shape."""
        scores = at_least_float32(self.score(x)).masked_fill(padding[..., None], -torch.inf)
        context = (scores.softmax(1) * x).sum(1, keepdim=True)
        return x + self.transform(context)


class FGDLoss(LevelwiseLoss):
    """Focal and global distillation (arXiv:2111.11837).

    The feature loss, Eq. 9, is the squared distance on objects and on background, weighted by the teacher's attention
    and by scale. The attention loss, Eq. 10, is the L1 distance of the attention masks. The global loss, Eq. 12, is the
    squared distance of the maps after a context block for each model; these blocks are trained with the student. All
    are sums over levels, cells and channels, averaged over images.

    If the maps are equal, the feature and the attention loss are zero, and so is the global loss before the first step.

    Unlike in the authors' code, a box covers the cells that it overlaps, as in `MemoryLoss`, and not one more row and
    column. Padding has no weight, and H W in Eq. 6 and 7 is the number of cells without it.

    Args:
        object_weight, background_weight: alpha and beta, of the feature loss.
        attention_weight: gamma, of the attention loss.
        global_weight: lambda, of the global loss.
        temperature: T, of the attention masks.
        feature: see `FeatureLoss`. The encoder ends with a layer normalization, so cells of the memory have similar
            spatial attention.
    """

    @checked(
        object_weight=not_negative,
        background_weight=not_negative,
        attention_weight=not_negative,
        global_weight=not_negative,
        temperature=above(0),
    )
    def __init__(
        self,
        object_weight: float,
        background_weight: float,
        attention_weight: float,
        global_weight: float,
        temperature: float,
        feature: str = "backbone",
    ):
        super().__init__(feature)
        self.weights = {
            "object": object_weight,
            "background": background_weight,
            "attention": attention_weight,
            "global": global_weight,
        }
        self.temperature = temperature

    def build(self, teacher: Detector, student: Detector) -> None:
        super().build(teacher, student)
        self.teacher_context, self.student_context = (
            nn.ModuleList(GlobalContext(teacher.embed_dim) for _ in range(self.num_levels)) for _ in range(2)
        )

    def forward(self, teacher: Outputs, student: Outputs, targets: Targets) -> dict[str, Tensor]:
        memory = teacher.memory
        cells = *self.aligned(teacher, student), *location_and_scale_weights(memory, targets), memory.padding_mask
        levels = zip(*map(memory.split, cells), self.teacher_context, self.student_context, strict=True)
        terms = torch.stack([torch.stack(self.level_terms(*level)) for level in levels]).sum(0) / len(targets)
        return {name: weight * term for (name, weight), term in zip(self.weights.items(), terms, strict=True)}

    def level_terms(
        self,
        teacher: Tensor,
        student: Tensor,
        objects: Tensor,
        background: Tensor,
        padding: Tensor,
        teacher_context: GlobalContext,
        student_context: GlobalContext,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the terms of one level, summed over images: object, background, attention and global.

        Args:
            teacher, student: maps (B, n, C).
            objects, background: (B, n), see `location_and_scale_weights`.
            padding: (B, n), True on padding.
        """
        spatial, channel = attention_masks(teacher, padding, self.temperature)
        student_spatial, student_channel = attention_masks(student, padding, self.temperature)
        distance = spatial * ((teacher - student).square() * channel[:, None]).sum(-1)
        relation = (teacher_context(teacher, padding) - student_context(student, padding)).square().sum(-1)
        return (
            (objects * distance).sum(),
            (background * distance).sum(),
            (spatial - student_spatial).abs().sum() + (channel - student_channel).abs().sum(),
            relation.masked_fill(padding, 0).sum(),
        )


class Generator(nn.Module):
    """Generation block of MGD (arXiv:2205.01529), Eq. 4: two 3x3 convolutions with a ReLU in between."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape. Cells that are not `valid` (B, 1, H, W) are zeros, as outside the map."""
        return self.conv2(F.relu(self.conv1(x * valid)) * valid)


class MGDLoss(LevelwiseLoss):
    """Masked generative distillation (arXiv:2205.01529), Eq. 2 to 5.

    Random cells of the student's maps are set to zero, and a generation block makes the teacher's maps from the rest.
    The loss is the squared distance, summed over levels, cells and channels, and averaged over images. It is not zero
    if the maps are equal.

    The cells are drawn with torch's global generator, which the trainer seeds in every step.

    Args:
        weight: alpha.
        mask_ratio: lambda, the fraction of cells that are masked, in [0, 1].
        feature: see `FeatureLoss`.
    """

    @checked(weight=not_negative, mask_ratio=fraction)
    def __init__(self, weight: float, mask_ratio: float, feature: str = "backbone"):
        super().__init__(feature)
        self.weight = weight
        self.mask_ratio = mask_ratio

    def build(self, teacher: Detector, student: Detector) -> None:
        super().build(teacher, student)
        self.generators = nn.ModuleList(Generator(teacher.embed_dim) for _ in range(self.num_levels))

    def forward(self, teacher: Outputs, student: Outputs, targets: Targets) -> dict[str, Tensor]:
        memory = teacher.memory
        maps = map(memory.split, (*self.aligned(teacher, student), memory.padding_mask))
        levels = zip(*maps, memory.level_shapes, self.generators, strict=True)
        return {"generation": self.weight * sum(self.level_loss(*level) for level in levels) / len(targets)}

    def level_loss(
        self, teacher: Tensor, student: Tensor, padding: Tensor, shape: Sequence[int], generator: Generator
    ) -> Tensor:
        """Return the loss of one level, summed over images, given maps (B, n, C) and the padding mask (B, n)."""
        tokens = teacher, student, ~padding[..., None]
        teacher, student, valid = (x.transpose(1, 2).unflatten(2, shape) for x in tokens)
        kept = torch.rand(valid.shape, device=student.device) >= self.mask_ratio
        generated = generator(student * kept, valid)
        return ((teacher - generated) * valid).square().sum()
