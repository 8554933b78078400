import torch

from clockdistill.modeling import Queries
from helpers.models import add_noise, random_batch, random_queries, tiny


def test_denoising_and_encoder_have_their_own_losses():
    losses = tiny("dino")(random_batch())
    assert {"loss_bbox_dn", "loss_class_dn_0", "loss_giou_enc"} <= losses.keys()


def test_target_and_denoising_queries_do_not_change_object_queries():
    model = add_noise(tiny("dino")).eval()
    batch = random_batch(counts=(3, 1))
    with torch.no_grad():
        memory = model.encode(model.preprocess(batch))
        objects = model.propose(memory)
        denoising, _, _ = model.denoising(model.targets(batch))
        targets = random_queries(model, torch.tensor([[False, False, False], [False, True, True]]))
        alone = model.decode(memory, objects)
        together = model.decode(memory, Queries.cat([objects, denoising, targets]))
        first, _, last = together.split([len(objects), len(denoising), 3])
        targets_alone = model.decode(memory, targets)
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, targets_alone, rtol=1e-4, atol=1e-5)


def test_boxes_carry_gradient_one_layer_back_and_no_further():
    """ "Look forward twice" (Sec. 3.5)."""
    model = add_noise(tiny("dino", decoder_layers=3)).eval()
    memory = model.encode(model.preprocess(random_batch()))
    boxes = model.decode(memory, model.propose(memory)).boxes
    # the heads' last layers reach other layers' boxes only through the reference boxes
    weights = [head.layers[-1].weight for head in model.box_heads[:3]]
    gradients = torch.autograd.grad(boxes[2].sum(), weights)
    assert [bool(gradient.abs().sum() > 0) for gradient in gradients] == [False, True, True]
