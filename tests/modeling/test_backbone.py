import pytest
import torch

from clockdistill.errors import UserError
from clockdistill.modeling import build_resnet
from clockdistill.modeling.foreign import translate


@pytest.mark.parametrize(("depth", "channels"), [(18, 512), (34, 512), (50, 2048), (101, 2048)])
def test_resnets_have_torchvisions_parameters(depth, channels):
    torchvision = pytest.importorskip("torchvision.models")
    ours = build_resnet(depth, norm="BN", freeze_at=0)
    assert ours.output_shape()["res5"].channels == channels
    with torch.device("meta"):
        theirs = getattr(torchvision, f"resnet{depth}")()
    without_classifier = sum(p.numel() for name, p in theirs.named_parameters() if not name.startswith("fc."))
    assert sum(p.numel() for p in ours.parameters()) == without_classifier


def test_a_dilated_last_stage_is_torchvisions():
    torchvision = pytest.importorskip("torchvision.models")
    theirs = torchvision.resnet50(replace_stride_with_dilation=[False, False, True]).eval()
    ours = build_resnet(50, norm="BN", out_features=["res5"], dilate_res5=True).eval()
    ours.load_state_dict(translate(theirs.state_dict(), ours), strict=False)
    assert ours.output_shape()["res5"].stride == 16
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = torch.nn.Sequential(*list(theirs.children())[:-2])(image)
        torch.testing.assert_close(ours(image)["res5"], expected)


def test_no_resnet_of_unknown_depth_and_no_dilated_basic_blocks():
    with pytest.raises(UserError, match="choose one of"):
        build_resnet(20)
    with pytest.raises(UserError, match="blocks of ResNet-18 know no dilation"):
        build_resnet(18, dilate_res5=True)
