import pytest
import torch

from clockdistill.errors import UserError
from clockdistill.modeling import build_resnet


@pytest.mark.parametrize(("depth", "channels"), [(18, 512), (34, 512), (50, 2048), (101, 2048)])
def test_resnets_have_torchvisions_parameters(depth, channels):
    torchvision = pytest.importorskip("torchvision.models")
    ours = build_resnet(depth, norm="BN", freeze_at=0)
    assert ours.output_shape()["res5"].channels == channels
    with torch.device("meta"):
        theirs = getattr(torchvision, f"resnet{depth}")()
    without_classifier = sum(p.numel() for name, p in theirs.named_parameters() if not name.startswith("fc."))
    assert sum(p.numel() for p in ours.parameters()) == without_classifier


def test_no_resnet_of_unknown_depth():
    with pytest.raises(UserError, match="choose one of"):
        build_resnet(20)
