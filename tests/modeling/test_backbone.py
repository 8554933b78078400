import json

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import OmegaConf

from clockdistill.engine.config import apply_overrides
from clockdistill.errors import InvalidValue, UserError
from clockdistill.modeling import build_resnet
from clockdistill.modeling.conversion import convert_state_dict
from helpers.models import random_batch, tiny_config


@pytest.mark.parametrize(("depth", "channels"), [(18, 512), (34, 512), (50, 2048), (101, 2048)])
def test_resnets_have_the_parameters_of_torchvision(depth, channels):
    torchvision = pytest.importorskip("torchvision.models")
    model = build_resnet(depth, norm="BN", freeze_at=0)
    assert model.output_shape()["res5"].channels == channels
    with torch.device("meta"):
        reference = getattr(torchvision, f"resnet{depth}")()
    without_classifier = sum(p.numel() for name, p in reference.named_parameters() if not name.startswith("fc."))
    assert sum(p.numel() for p in model.parameters()) == without_classifier


def test_dilated_last_stage_matches_torchvision():
    torchvision = pytest.importorskip("torchvision.models")
    reference = torchvision.resnet50(replace_stride_with_dilation=[False, False, True]).eval()
    model = build_resnet(50, norm="BN", out_features=["res5"], dilate_res5=True).eval()
    model.load_state_dict(convert_state_dict(reference.state_dict(), model), strict=False)
    assert model.output_shape()["res5"].stride == 16
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = torch.nn.Sequential(*list(reference.children())[:-2])(image)
        torch.testing.assert_close(model(image)["res5"], expected)


def swin(outputs):
    return {
        "_target_": "detectron2.modeling.backbone.swin.SwinTransformer",
        "embed_dim": 8,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 2, 2, 4],
        "window_size": 4,
        "drop_path_rate": 0.0,  # otherwise Detectron2 imports DropPath from timm
        "out_indices": outputs,
    }


# a backbone that requires image sizes divisible by 32
FPN = {
    "_target_": "detectron2.modeling.backbone.FPN",
    "bottom_up": {
        "_target_": "clockdistill.modeling.build_resnet",
        "depth": 18,
        "width": 8,
        "norm": "BN",
        "freeze_at": 0,
    },
    "in_features": ["res3", "res4", "res5"],
    "out_channels": 16,
}
STAGES = FPN["bottom_up"] | {"out_features": ["res2", "res3", "res4", "res5"]}


@pytest.mark.parametrize(
    ("variant", "backbone", "features", "channels"),
    [
        ("dino", swin([1, 2, 3]), ["p1", "p2", "p3"], [16, 32, 64]),
        ("dino.5scale", swin([0, 1, 2, 3]), ["p0", "p1", "p2", "p3"], [8, 16, 32, 64]),
        ("deformable_detr.two_stage", swin([1, 2, 3]), ["p1", "p2", "p3"], [16, 32, 64]),
        ("dab_detr", swin([3]), ["p3"], [64]),
        ("dino", FPN, ["p3", "p4", "p5"], [16, 16, 16]),
    ],
    ids=["dino", "dino.5scale", "deformable_detr", "dab_detr", "FPN"],
)
def test_detectron2_backbones_work_with_overrides_only(variant, backbone, features, channels):
    cfg = OmegaConf.create({"model": tiny_config(variant)}, flags={"allow_objects": True})
    overrides = {"backbone": backbone, "neck.in_features": features, "neck.in_channels": channels}
    # reset the backbone first, since its keys differ
    arguments = [f"model.{key}={json.dumps(value).replace(chr(34), '')}" for key, value in overrides.items()]
    apply_overrides(cfg, ["model.backbone=null", *arguments])
    model = instantiate(cfg.model)
    assert type(model.backbone).__name__ == backbone["_target_"].split(".")[-1]
    losses = model(random_batch(sizes=((64, 96), (80, 60))))
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        (output,) = model.eval()(random_batch(sizes=((60, 90),), counts=(1,)))
    assert len(output["instances"]) > 0


@pytest.mark.parametrize(
    ("backbone", "features", "channels", "unused"),
    [
        (FPN | {"bottom_up": STAGES, "in_features": STAGES["out_features"]}, ["p3", "p4", "p5"], [16, 16, 16], "p2"),
        (STAGES, ["res3", "res4"], [16, 32], "res5"),
        (STAGES | {"out_features": ["res2", "res3", "res4"]}, ["res3", "res4"], [16, 32], None),
    ],
    ids=["a level of a pyramid", "a last stage", "an inner stage"],
)
def test_outputs_that_get_no_gradient_are_refused(backbone, features, channels, unused):
    config = tiny_config("dino")
    config.backbone = backbone
    config.neck.update(in_features=features, in_channels=channels)
    if unused is None:
        model = instantiate(config)
        sum(model(random_batch()).values()).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
    else:
        with pytest.raises(InvalidValue, match=f"it must be a list with {unused} too, or remove these from"):
            instantiate(config)


def test_unknown_depths_and_dilated_basic_blocks_are_rejected():
    with pytest.raises(UserError, match="depth cannot be 20: it must be one of 18, 34, 50, 101"):
        build_resnet(20)
    with pytest.raises(UserError, match="ResNet-18 does not support dilation"):
        build_resnet(18, dilate_res5=True)
