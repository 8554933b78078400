"""The detectors on a GPU, against the CPU."""

import pytest
import torch
from torch.testing import assert_close

from helpers.models import VARIANTS, add_noise, random_batch, tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICE = "cuda"


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_match_the_cpu(variant):
    model, batch = add_noise(tiny(variant)).eval(), random_batch()
    on_cpu = model(batch)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        on_gpu = model.to(DEVICE)(batch)
    # sorted, because near ties may change places
    for cpu, gpu in zip(on_cpu, on_gpu):
        scores = [x["instances"].scores.cpu().sort().values for x in (cpu, gpu)]
        assert_close(*scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_step_is_finite(variant, dtype):
    model = tiny(variant).to(DEVICE).train()
    with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
        losses = model(random_batch())
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
