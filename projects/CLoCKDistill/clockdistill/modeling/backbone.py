"""Detectron2's ResNets in the depths that detection transformers use."""

from collections.abc import Sequence

from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock

from ..checks import Rule, between, checked, count, one_of, some_of
from ..errors import UserError

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


@checked(
    depth=Rule(lambda depth: depth in BLOCKS, "one of 18, 34, 50, 101"),
    norm=one_of("FrozenBN", "BN", "SyncBN", "GN"),
    freeze_at=between(0, 5),
    width=count,
    out_features=some_of("stem", "res2", "res3", "res4", "res5"),
)
def build_resnet(
    depth: int,
    norm: str = "FrozenBN",
    freeze_at: int = 1,
    out_features: Sequence[str] = ("res3", "res4", "res5"),
    width: int = 64,
    dilate_res5: bool = False,
) -> ResNet:
    """Build Detectron2's ResNet with strides in the 3x3 convolutions, to match torchvision's RGB weights.

    Args:
        depth: 18, 34, 50 or 101.
        norm: "FrozenBN", "BN", "SyncBN" or "GN".
        freeze_at: number of frozen stages, including the stem; 0 when training from scratch.
        width: channels of the stem; 64 in the standard network, fewer in a narrow one.
        dilate_res5: replace the stride of the last stage by dilation ("DC5" in DETR, arXiv:2005.12872, Sec. 4).
    """
    bottleneck = depth >= 50
    if dilate_res5 and not bottleneck:
        raise UserError(f"ResNet-{depth} does not support dilation: set dilate_res5=False, or depth 50 or 101")
    stem = BasicStem(in_channels=3, out_channels=width, norm=norm)
    stages, in_channels = [], width
    for index, num_blocks in enumerate(BLOCKS[depth]):
        inner = width * 2**index
        first_stride = 1 if index == 0 or (index == 3 and dilate_res5) else 2
        kwargs = {"bottleneck_channels": inner, "stride_in_1x1": False} if bottleneck else {}
        if index == 3 and dilate_res5:
            # as in torchvision, the first block loses its stride but is not dilated
            kwargs["dilation_per_block"] = [1] + [2] * (num_blocks - 1)
        out_channels = inner * 4 if bottleneck else inner
        stages.append(
            ResNet.make_stage(
                BottleneckBlock if bottleneck else BasicBlock,
                num_blocks,
                stride_per_block=[first_stride] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                norm=norm,
                **kwargs,
            )
        )
        in_channels = out_channels
    return ResNet(stem, stages, out_features=list(out_features), freeze_at=freeze_at)
