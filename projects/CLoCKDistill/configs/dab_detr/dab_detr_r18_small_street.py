"""The demo's DAB-DETR teacher, on one level of stride 8; its backbone starts from the weights of the DINO teacher."""

from pathlib import Path

from ..common.models.dab_detr import model
from ..dino.dino_r18_small_street import dataloader, lr_multiplier, optimizer, train

model.backbone.update(depth=18, norm="BN", freeze_at=0, width=20)
model.neck.update(in_features=["res3"], in_channels=[40])
model.encoder.update(num_layers=3, embed_dim=128, feedforward_dim=320)
model.decoder.num_layers = 3
model.update(num_classes=5, num_queries=60, detections_per_image=100)

train.init_checkpoint = str(Path(__file__).parents[2] / "demo" / "dino_r18_small_street.pth")
train.output_dir = "./output/dab_detr_r18_small_street"
train.max_iter = 8000
train.eval_period = 2000
