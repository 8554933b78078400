from .dino_r50_coco_12ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depth = 101

train.init_checkpoint = "https://download.pytorch.org/models/resnet101-63fe2227.pth"
train.output_dir = "./output/dino_r101_coco_12ep"
