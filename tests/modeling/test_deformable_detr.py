"""Deformable DETR against its paper's formulas."""

import copy
import math

import pytest
import torch
from detectron2.config import instantiate

from clockdistill.errors import UserError
from helpers.models import add_noise, model_config, random_batch, random_queries, tiny, tiny_config


def record_layers(model):
    """Inputs and outputs of every decoder layer, in a list that is filled when the model decodes."""
    calls = []
    for layer in model.decoder.layers:
        layer.register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))
    return calls


def decode(model, queries=None):
    with torch.no_grad():
        memory = model.encode(model.preprocess(random_batch(sizes=((64, 96), (96, 64)))))
        queries = queries or model.propose(memory)
        return memory, queries, model.decode(memory, queries)


def logit(p, eps=1e-5):
    p = p.clamp(eps, 1 - eps)
    return (p / (1 - p)).log()


def test_the_number_of_trainable_parameters_equals_the_official_training_log():
    """The official training freezes the stem and the first stage of the backbone."""
    config = model_config("deformable_detr")
    config.num_classes = 91
    config.backbone.freeze_at = 2
    with torch.device("meta"):
        model = instantiate(config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 39_847_265


def test_single_stage_layers_attend_around_the_same_points():
    model = add_noise(tiny("deformable_detr")).eval()
    calls = record_layers(model)
    memory, _, predictions = decode(model)
    position, content = model.query_embedding.weight.split(32, 1)
    points = torch.sigmoid(position @ model.reference_points.weight.T + model.reference_points.bias)
    torch.testing.assert_close(calls[0][0][0], content.expand(2, -1, -1))
    for layer, ((_, given_position, reference, *_), x) in enumerate(calls):
        torch.testing.assert_close(given_position, position.expand(2, -1, -1))
        for level in range(4):
            torch.testing.assert_close(reference[1, :, level], points * memory.valid_ratios[1, level])
        delta = model.box_heads[0](x)
        expected = torch.cat((delta[..., :2] + logit(points), delta[..., 2:]), -1).sigmoid()
        torch.testing.assert_close(predictions.boxes[layer], expected)
        torch.testing.assert_close(predictions.logits[layer], model.class_heads[0](x))


def test_the_next_layer_attends_around_the_refined_boxes():
    model = add_noise(tiny("deformable_detr.refine", decoder_layers=3)).eval()
    calls = record_layers(model)
    memory, queries, predictions = decode(model)
    ratios = memory.valid_ratios[:, None]
    torch.testing.assert_close(calls[0][0][2], queries.reference[:, :, None, :2] * ratios)
    for layer in (1, 2):
        reference = predictions.boxes[layer - 1]
        torch.testing.assert_close(calls[layer][0][2], reference[:, :, None] * torch.cat((ratios, ratios), -1))
        expected = (model.box_heads[layer](calls[layer][1]) + logit(reference)).sigmoid()
        torch.testing.assert_close(predictions.boxes[layer], expected)
    delta = model.box_heads[0](calls[0][1])
    torch.testing.assert_close(predictions.boxes[0][..., 2:], delta[..., 2:].sigmoid())


def test_refinement_carries_no_gradient_from_layer_to_layer():
    model = add_noise(tiny("deformable_detr.refine")).eval()
    memory = model.encode(model.preprocess(random_batch()))
    decoded = model.decode(memory, model.propose(memory))
    decoded.boxes[1].sum().backward()
    assert model.box_heads[0].layers[-1].weight.grad.abs().sum() == 0
    assert model.box_heads[1].layers[-1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("variant", ["deformable_detr", "deformable_detr.refine"])
def test_only_the_center_of_a_single_stage_querys_box_matters(variant):
    model = add_noise(tiny(variant)).eval()
    queries = random_queries(model, torch.zeros(2, 3, dtype=torch.bool))
    _, _, expected = decode(model, queries)
    queries.reference[..., 2:] = torch.rand(2, 3, 2)
    _, _, predictions = decode(model, queries)
    torch.testing.assert_close(predictions, expected)


def proposals_by_loop(model, memory, image):
    """Score of the first class and box of every cell of an image."""
    scores, boxes = [], []
    cell = 0
    for level, (height, width) in enumerate(memory.spatial_shapes.tolist()):
        valid_width, valid_height = (memory.valid_ratios[image, level] * torch.tensor([width, height])).round().tolist()
        for row in range(height):
            for column in range(width):
                size = 0.05 * 2**level
                anchor = [(column + 0.5) / valid_width, (row + 0.5) / valid_height, size, size]
                valid = row < valid_height and column < valid_width and all(0.01 < a < 0.99 for a in anchor)
                token = memory.tokens[image, cell] if valid else torch.zeros(model.embed_dim)
                token = model.proposal_norm(model.proposal_proj(token))
                scores.append(model.class_heads[-1](token)[0].item())
                delta = model.box_heads[-1](token)
                boxes.append((delta + logit(torch.tensor(anchor))).sigmoid() if valid else torch.ones(4))
                cell += 1
    return torch.tensor(scores), torch.stack(boxes)


def test_two_stage_queries_are_made_from_the_best_cells():
    model = add_noise(tiny("deformable_detr.two_stage")).eval()
    calls = record_layers(model)
    memory, queries, _ = decode(model)
    frequencies = [10000 ** (2 * (i // 2) / 16) for i in range(16)]
    for image in range(2):
        scores, boxes = proposals_by_loop(model, memory, image)
        torch.testing.assert_close(queries.proposals.boxes[0, image], boxes, rtol=1e-4, atol=1e-5)
        best = scores.topk(20).indices
        torch.testing.assert_close(queries.reference[image], boxes[best], rtol=1e-4, atol=1e-5)
        for query in (0, 7):
            encoded = []
            for value in queries.reference[image, query].tolist():  # x, y, w, h
                for i, frequency in enumerate(frequencies):
                    phase = value * 2 * math.pi / frequency
                    encoded.append(math.cos(phase) if i % 2 else math.sin(phase))
            position, content = model.query_norm(model.query_proj(torch.tensor(encoded))).split(32)
            torch.testing.assert_close(queries.content[image, query], content, rtol=1e-3, atol=1e-4)
            for inputs, _ in calls:
                torch.testing.assert_close(inputs[1][image, query], position, rtol=1e-3, atol=1e-4)


def test_encoder_proposals_are_scored_as_objects_of_any_class():
    model = add_noise(tiny("deformable_detr.two_stage")).train()
    model.backbone.eval()
    batch = random_batch()
    relabeled = copy.deepcopy(batch)
    for sample in relabeled:
        sample["instances"].gt_classes = (sample["instances"].gt_classes + 1) % 3
    losses, others = model(batch), model(relabeled)
    torch.testing.assert_close(losses["loss_class_enc"], others["loss_class_enc"])
    assert losses["loss_class"].item() != pytest.approx(others["loss_class"].item(), rel=1e-3)


def test_two_stages_require_refinement():
    config = tiny_config("deformable_detr.two_stage")
    config.decoder.refine = False
    with pytest.raises(UserError, match=r"set model\.decoder\.refine=True"):
        instantiate(config)
