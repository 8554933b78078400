"""The neck between backbone and transformer."""

from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..checks import checked, count, some_of
from ..errors import InvalidValue, UserError

NORM_GROUPS = 32


class ChannelMapper(nn.Module):
    """Project features to `embed_dim` channels and add levels by 3x3 convolutions of stride 2.

    Args:
        in_features: names of the backbone's features to use, finest first.
        in_channels: number of channels of each feature.
        num_levels: number of output levels, at least the number of features.
        norm: whether to apply group norm after the convolutions.
    """

    @checked(embed_dim=count, num_levels=count)
    def __init__(
        self,
        in_features: Sequence[str],
        in_channels: Sequence[int],
        embed_dim: int,
        num_levels: int,
        norm: bool = True,
    ):
        super().__init__()
        if norm and embed_dim % NORM_GROUPS:
            raise UserError(f"embed_dim {embed_dim} must be a multiple of {NORM_GROUPS}, the groups of its GroupNorm")
        if not in_features:
            raise InvalidValue("in_features", [], "a list of the backbone's features")
        if len(in_channels) != len(in_features):
            raise InvalidValue(
                "in_channels", list(in_channels), f"{len(in_features)} numbers, one for each of in_features"
            )
        if num_levels < len(in_features):
            raise InvalidValue("num_levels", num_levels, f"at least {len(in_features)}, the number of in_features")
        self.in_features = list(in_features)
        self.in_channels = list(in_channels)
        levels = [(c, dict(kernel_size=1)) for c in in_channels]
        for extra in range(num_levels - len(in_channels)):
            levels.append((in_channels[-1] if extra == 0 else embed_dim, dict(kernel_size=3, stride=2, padding=1)))
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, embed_dim, **kwargs), *([nn.GroupNorm(NORM_GROUPS, embed_dim)] if norm else []))
            for c, kwargs in levels
        )
        for conv, *_ in self.convs:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Map named features (B, C_l, H_l, W_l) to a list of `num_levels` levels (B, embed_dim, H_l, W_l)."""
        maps = [features[name] for name in self.in_features]
        levels = [conv(x) for conv, x in zip(self.convs, maps, strict=False)]
        extra = maps[-1]
        for conv in self.convs[len(maps) :]:
            extra = conv(extra)
            levels.append(extra)
        return levels

    def check_inputs(self, shapes: dict[str, ShapeSpec]) -> None:
        """Raise an `InvalidValue` unless the backbone has these features, with these numbers of channels.

        Nor may it compute more that gets no gradient: stages after the last of them, or other levels of a pyramid.
        """
        some_of_backbone = some_of(*shapes)
        if not some_of_backbone.holds(self.in_features):
            raise InvalidValue("in_features", self.in_features, f"{some_of_backbone.text}, the backbone's features")
        expected = [shapes[name].channels for name in self.in_features]
        if self.in_channels != expected:
            raise InvalidValue("in_channels", self.in_channels, f"{expected}, the backbone's channels")
        deepest = max(shapes[name].stride for name in self.in_features)
        unused = [
            name
            for name, shape in shapes.items()
            # the levels of a pyramid have equal widths and layers of their own
            if name not in self.in_features
            and (shape.channels in expected if shape.stride < deepest else shape.channels > max(expected))
        ]
        if unused:
            text = f"a list with {', '.join(unused)} too, or remove these from the backbone's outputs (out_features)"
            raise InvalidValue("in_features", self.in_features, text)

    def strides(self, shapes: dict[str, ShapeSpec]) -> list[int]:
        """Return the stride of every level in pixels, given the backbone's output shapes."""
        strides = [shapes[name].stride for name in self.in_features]
        for _ in self.convs[len(strides) :]:
            strides.append(2 * strides[-1])
        return strides
