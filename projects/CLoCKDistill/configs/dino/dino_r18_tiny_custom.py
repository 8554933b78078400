"""A student for your own data: the teacher with a narrower backbone. The transformer starts from the teacher's."""

from .dino_r18_small_custom import dataloader, lr_multiplier, model, optimizer, train

model.backbone.width = 8
model.neck.in_channels = [16, 32, 64]

train.init_checkpoint = "./output/dino_r18_small_custom/model_final.pth"
optimizer.params.backbone_lr_factor = 4.0
train.output_dir = "./output/dino_r18_tiny_custom"
train.max_iter = 250
train.eval_period = 250
train.checkpointer.period = 250
