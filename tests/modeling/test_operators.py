"""Detectors with the compiled operators and in pure PyTorch."""

import pytest
import torch
from torch.testing import assert_close

from clockdistill.layers import extension
from clockdistill.layers.ms_deform_attn import by_grid_sample
from helpers.models import add_noise, random_batch, tiny


@pytest.mark.skipif(not extension.has_kernel("cpu"), reason=extension.load())
@pytest.mark.parametrize("variant", ["dino", "deformable_detr", "deformable_detr.refine", "deformable_detr.two_stage"])
def test_losses_and_gradients_match(variant, monkeypatch):
    model = add_noise(tiny(variant)).train()
    batch = random_batch()

    def run():
        torch.manual_seed(1)  # for the denoising queries
        model.zero_grad()
        losses = model(batch)
        sum(losses.values()).backward()
        return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    losses, grads = run()
    calls = []
    monkeypatch.setattr(
        "clockdistill.layers.attention.ms_deform_attn", lambda *args: calls.append(1) or by_grid_sample(*args)
    )
    expected_losses, expected_grads = run()
    assert calls
    assert_close(losses, expected_losses, rtol=1e-4, atol=1e-4)
    # compare norms: single elements accumulate rounding errors, and some gradients are nothing else
    total = torch.stack([expected.norm() for expected in expected_grads.values()]).norm()
    for name, expected in expected_grads.items():
        assert (grads[name] - expected).norm() <= 1e-3 * expected.norm() + 1e-5 * total, name
