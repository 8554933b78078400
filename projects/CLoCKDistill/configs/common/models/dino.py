"""DINO with a ResNet-50, 4 scales and 80 classes (arXiv:2203.03605): 47.65 M parameters.

Every decoder layer has its own head, as in detrex. The position encoding is the official implementation's. A checkpoint
of detrex needs `model.position_embedding.temperature=10000 model.position_embedding.offset=-0.5`.
"""

from detectron2.config import LazyCall as L

from clockdistill.layers import PositionEmbeddingSine
from clockdistill.modeling import (
    DINO,
    ChannelMapper,
    ContrastiveDenoising,
    DeformableDecoder,
    DeformableEncoder,
    build_resnet,
)

from ..criterion import set_criterion

model = L(DINO)(
    backbone=L(build_resnet)(depth=50, norm="FrozenBN", freeze_at=1, out_features="${..neck.in_features}", width=64),
    neck=L(ChannelMapper)(
        in_features=["res3", "res4", "res5"],
        in_channels=[512, 1024, 2048],
        embed_dim="${..encoder.embed_dim}",
        num_levels="${..encoder.num_levels}",
    ),
    position_embedding=L(PositionEmbeddingSine)(embed_dim="${..encoder.embed_dim}", temperature=20, offset=0.0),
    encoder=L(DeformableEncoder)(
        num_layers=6,
        embed_dim=256,
        num_heads=8,
        num_levels=4,
        num_points=4,
        feedforward_dim=2048,
        # True saves memory in training, and costs a second forward pass of the encoder
        activation_checkpointing=False,
    ),
    decoder=L(DeformableDecoder)(
        num_layers=6,
        embed_dim="${..encoder.embed_dim}",
        num_heads="${..encoder.num_heads}",
        num_levels="${..encoder.num_levels}",
        num_points="${..encoder.num_points}",
        feedforward_dim="${..encoder.feedforward_dim}",
    ),
    denoising=L(ContrastiveDenoising)(
        num_classes="${..num_classes}",
        embed_dim="${..encoder.embed_dim}",
        num_queries=100,
        label_noise=0.5,
        box_noise=1.0,
    ),
    criterion=set_criterion(class_weight=1.0),
    num_classes=80,
    num_queries=900,
    pixel_mean=[123.675, 116.280, 103.530],
    pixel_std=[58.395, 57.120, 57.375],
    detections_per_image=300,
)

variants = {
    # a fifth scale, of stride 4 (Tab. 1)
    "5scale": dict(
        neck=dict(in_features=["res2", "res3", "res4", "res5"], in_channels=[256, 512, 1024, 2048]),
        encoder=dict(num_levels=5),
    )
}
