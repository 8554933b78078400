"""DAB-DETR with a ResNet-50 and 80 classes (arXiv:2201.12329): 43.67 M parameters.

The temperature of 20 is for the position encoding of the image features only; that of the anchors has 10000, as in the
reference implementation.
"""

from detectron2.config import LazyCall as L

from clockdistill.layers import PositionEmbeddingSine
from clockdistill.modeling import (
    DABDETR,
    ChannelMapper,
    DABDecoder,
    DABEncoder,
    build_resnet,
)

from ..criterion import set_criterion

model = L(DABDETR)(
    backbone=L(build_resnet)(
        depth=50, norm="FrozenBN", freeze_at=1, out_features="${..neck.in_features}", width=64, dilate_res5=False
    ),
    neck=L(ChannelMapper)(
        in_features=["res5"], in_channels=[2048], embed_dim="${..encoder.embed_dim}", num_levels=1, norm=False
    ),
    position_embedding=L(PositionEmbeddingSine)(embed_dim="${..encoder.embed_dim}", temperature=20, offset=0.0),
    encoder=L(DABEncoder)(
        num_layers=6,
        embed_dim=256,
        num_heads=8,
        feedforward_dim=2048,
        # True saves memory in training, and costs a second forward pass of the encoder
        activation_checkpointing=False,
    ),
    decoder=L(DABDecoder)(
        num_layers=6,
        embed_dim="${..encoder.embed_dim}",
        num_heads="${..encoder.num_heads}",
        feedforward_dim="${..encoder.feedforward_dim}",
    ),
    criterion=set_criterion(class_weight=1.0),
    num_classes=80,
    num_queries=300,
    num_patterns=0,
    pixel_mean=[123.675, 116.280, 103.530],
    pixel_std=[58.395, 57.120, 57.375],
    detections_per_image=300,
)

variants = dict(
    # dilated last stage: twice the resolution
    dc5=dict(backbone=dict(dilate_res5=True)),
    # three learned contents, hence three queries, per anchor (Anchor DETR, arXiv:2109.07107)
    patterns=dict(num_patterns=3),
)
