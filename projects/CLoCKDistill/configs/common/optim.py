import torch
from detectron2.config import LazyCall as L

from clockdistill.engine import get_detr_optimizer_params

# as in DINO (arXiv:2203.03605, App. D) and DAB-DETR; Deformable DETR also lowers the learning rate of sampling offsets
# and reference points
optimizer = L(torch.optim.AdamW)(
    params=L(get_detr_optimizer_params)(base_lr="${..lr}", backbone_lr_factor=0.1),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=1e-4,
)
