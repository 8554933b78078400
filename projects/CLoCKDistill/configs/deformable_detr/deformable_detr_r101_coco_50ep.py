from .deformable_detr_r50_coco_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depth = 101

train.init_checkpoint = "https://download.pytorch.org/models/resnet101-63fe2227.pth"
train.output_dir = "./output/deformable_detr_r101_coco_50ep"
