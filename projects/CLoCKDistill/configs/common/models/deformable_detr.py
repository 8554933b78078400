"""Deformable DETR with a ResNet-50 and 80 classes (arXiv:2010.04159), single-stage: 40.07 M parameters.

Position encoding, feed-forward width and eps are the official implementation's. A checkpoint of detrex needs
`model.decoder.eps=1e-3`, and one of its newer models `model.encoder.feedforward_dim=2048` too. There is no dropout, as
in detrex and in DINO.
"""

from detectron2.config import LazyCall as L

from clockdistill.layers import PositionEmbeddingSine
from clockdistill.modeling import (
    ChannelMapper,
    DeformableDETR,
    DeformableDETRDecoder,
    DeformableEncoder,
    build_resnet,
)

from ..criterion import set_criterion

model = L(DeformableDETR)(
    backbone=L(build_resnet)(depth=50, norm="FrozenBN", freeze_at=1, out_features="${..neck.in_features}", width=64),
    neck=L(ChannelMapper)(
        in_features=["res3", "res4", "res5"],
        in_channels=[512, 1024, 2048],
        embed_dim="${..encoder.embed_dim}",
        num_levels="${..encoder.num_levels}",
    ),
    position_embedding=L(PositionEmbeddingSine)(embed_dim="${..encoder.embed_dim}", temperature=10000, offset=-0.5),
    encoder=L(DeformableEncoder)(
        num_layers=6,
        embed_dim=256,
        num_heads=8,
        num_levels=4,
        num_points=4,
        feedforward_dim=1024,
        # True saves memory in training, and costs a second forward pass of the encoder
        activation_checkpointing=False,
    ),
    decoder=L(DeformableDETRDecoder)(
        num_layers=6,
        embed_dim="${..encoder.embed_dim}",
        num_heads="${..encoder.num_heads}",
        num_levels="${..encoder.num_levels}",
        num_points="${..encoder.num_points}",
        feedforward_dim="${..encoder.feedforward_dim}",
        refine=False,
        eps=1e-5,
    ),
    criterion=set_criterion(class_weight=2.0),
    two_stage=False,
    num_classes=80,
    num_queries=300,
    pixel_mean=[123.675, 116.280, 103.530],
    pixel_std=[58.395, 57.120, 57.375],
    detections_per_image=100,
)

variants = dict(
    # iterative bounding box refinement (Sec. 4.2)
    refine=dict(decoder=dict(refine=True)),
    # queries from the encoder's proposals (Sec. 4.2)
    two_stage=dict(two_stage=True, decoder=dict(refine=True)),
)
