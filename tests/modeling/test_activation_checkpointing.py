"""Activation checkpointing of the encoder changes the memory of a training step, and nothing else."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from torch import nn

from helpers.distillation import make_hook, save_teacher
from helpers.models import VARIANTS, add_noise, random_batch, tiny_config


def make_model(variant, activation_checkpointing):
    config = tiny_config(variant)
    config.encoder.update(num_layers=2, activation_checkpointing=activation_checkpointing)
    torch.manual_seed(0)
    model = add_noise(instantiate(config))
    for layer in model.encoder.layers:
        layer.ffn.append(nn.Dropout(0.5))
    return model


def step(model, compute_losses):
    """Return losses, gradients, the number of runs of the encoder's first layer, and the bytes kept for backward."""
    runs, kept = [], []
    model.encoder.layers[0].register_forward_pre_hook(lambda *_: runs.append(1))

    def keep(x):
        kept.append(x.nbytes)
        return x

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        losses = compute_losses(random_batch())
    sum(losses.values()).backward()
    return losses, [p.grad for p in model.parameters()], len(runs), sum(kept)


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_the_same_with_dropout(variant):
    results = []
    for activation_checkpointing in (False, True):
        model = make_model(variant, activation_checkpointing)
        results.append(step(model, model))
    (losses, gradients, runs, kept), (also_losses, also_gradients, more_runs, fewer_kept) = results
    assert losses == also_losses
    assert all(map(torch.equal, gradients, also_gradients))
    assert (runs, more_runs) == (1, 2)
    assert fewer_kept < kept


def test_distillation_and_gradient_shares_are_the_same(tmp_path):
    teacher, results = save_teacher(tmp_path), []
    for activation_checkpointing in (False, True):
        model = make_model("dino", activation_checkpointing)
        hook = make_hook(model, teacher, gradient_share_period=1)
        with EventStorage() as storage:
            losses, gradients, *_ = step(model, lambda batch, hook=hook, model=model: hook.compute_losses(model, batch))
            results.append((losses, gradients, storage.latest()))
    (losses, gradients, shares), (also_losses, also_gradients, also_shares) = results
    assert losses == also_losses
    assert all(map(torch.equal, gradients, also_gradients))
    assert shares
    assert shares == also_shares


def test_nothing_is_kept_or_repeated_without_gradient():
    model = make_model("dino", True).eval()
    runs = []
    model.encoder.layers[0].register_forward_pre_hook(lambda *_: runs.append(1))
    with torch.inference_mode():
        model(random_batch())
    assert len(runs) == 1
