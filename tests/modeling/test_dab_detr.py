"""DAB-DETR against its paper's formulas."""

import math

import pytest
import torch

from helpers.models import add_noise, random_batch, tiny

WIDTH, HEADS = 32, 4


def record(modules):
    """Inputs and outputs of the modules, in a list that is filled when they are called."""
    calls = []
    for module in modules:
        module.register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))
    return calls


def run(variant="dab_detr", **kwargs):
    """A model with noise, the inputs and outputs of its decoder layers and their attentions, and its predictions."""
    model = add_noise(tiny(variant, **kwargs)).eval()
    layers = record(model.decoder.layers)
    cross = record(layer.cross_attn for layer in model.decoder.layers)
    self_attention = record(layer.self_attn for layer in model.decoder.layers)
    with torch.no_grad():
        memory = model.encode(model.preprocess(random_batch(sizes=((128, 192), (96, 160)))))
        queries = model.propose(memory)
        predictions = model.decode(memory, queries)
    return model, layers, cross, self_attention, memory, queries, predictions


def sine(value, channels=WIDTH // 2):
    """Eq. 8, for a coordinate in [0, 1]."""
    phases = [value * 2 * math.pi / 10000 ** (2 * (i // 2) / channels) for i in range(channels)]
    return torch.tensor([math.cos(phase) if i % 2 else math.sin(phase) for i, phase in enumerate(phases)])


def softmax_attention(query, key, value, padding=None):
    """One head's output for one query: (D,), (N, D), (N, V) to (V,)."""
    weights = (key @ query) / math.sqrt(len(query))
    if padding is not None:
        weights[padding] = -math.inf
    return weights.softmax(0) @ value


def test_every_layer_starts_from_the_previous_boxes():
    model, layers, _, _, _, queries, predictions = run(decoder_layers=3)
    torch.testing.assert_close(queries.reference[1], model.anchors.weight.sigmoid())
    assert (queries.content == 0).all()
    reference = scored_from = queries.reference
    for layer, ((_, position, *_), x) in enumerate(layers):
        cx, cy, w, h = reference[1, 4].tolist()
        encoded = torch.cat([sine(value) for value in (cy, cx, w, h)])
        torch.testing.assert_close(position[1, 4], model.decoder.reference_head(encoded), rtol=1e-3, atol=1e-4)
        normed = model.decoder.norm(x)
        torch.testing.assert_close(predictions.logits[layer], model.class_head(normed))
        boxes = (model.box_head(normed) + scored_from.logit(eps=1e-3)).sigmoid()
        torch.testing.assert_close(predictions.boxes[layer], boxes, rtol=1e-4, atol=1e-5)
        reference = scored_from = (model.box_head(x) + reference.logit(eps=1e-3)).sigmoid()


def test_width_and_height_modulate_the_similarity_of_positions():
    """Eq. 6: PE(x) . PE(x_ref) is multiplied by w_ref / w, PE(y) . PE(y_ref) by h_ref / h."""
    model, layers, _, _, _, queries, _ = run()
    reference = queries.reference
    for index, ((x, _, center, *_), output) in enumerate(layers):
        for query in (0, 11):
            cx, cy, w, h = reference[0, query].tolist()
            content = x[0, query]
            w_ref, h_ref = model.decoder.extent_head(content).sigmoid().tolist()
            scale = model.decoder.position_scale(content) if index else torch.ones(WIDTH)
            half = WIDTH // 2
            for x_cell, y_cell in ((0.3, 0.8), (0.55, 0.1)):
                similarity = center[0, query] @ torch.cat((sine(y_cell), sine(x_cell)))
                along_y = (sine(cy) * scale[:half]) @ sine(y_cell)
                along_x = (sine(cx) * scale[half:]) @ sine(x_cell)
                expected = along_y * h_ref / h + along_x * w_ref / w
                torch.testing.assert_close(similarity, expected, rtol=1e-3, atol=1e-3)
        reference = (model.box_head(output) + reference.logit(eps=1e-3)).sigmoid()


def test_cross_attention_concatenates_content_and_position():
    model, _, calls, _, memory, _, _ = run()
    assert [layer.cross_attn.query_pos_proj is None for layer in model.decoder.layers] == [False, True]
    image, query = 1, 5
    padding = memory.padding_mask[image]
    assert padding.any()
    for layer, ((x, position, center, _), output) in zip(model.decoder.layers, calls, strict=True):
        attention = layer.cross_attn
        q, k = attention.query_content_proj(x[image, query]), attention.key_content_proj(memory.tokens[image])
        k_position = attention.key_pos_proj(memory.position[image])
        if layer is model.decoder.layers[0]:
            q, k = q + attention.query_pos_proj(position[image, query]), k + k_position
        q_position = attention.query_centre_proj(center[image, query])
        v = attention.value_proj(memory.tokens[image])
        heads = []
        for head in range(HEADS):
            part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            heads.append(
                softmax_attention(
                    torch.cat((q[part], q_position[part])),
                    torch.cat((k[:, part], k_position[:, part]), 1),
                    v[:, part],
                    padding,
                )
            )
        expected = attention.out_proj(torch.cat(heads))
        torch.testing.assert_close(output[image, query], expected, rtol=1e-3, atol=1e-4)


def test_self_attention_adds_content_and_position():
    model, _, _, calls, _, _, _ = run()
    for layer, ((x, position, _), output) in zip(model.decoder.layers, calls, strict=True):
        attention = layer.self_attn
        q = attention.query_content_proj(x[0, 3]) + attention.query_pos_proj(position[0, 3])
        k = attention.key_content_proj(x[0]) + attention.key_pos_proj(position[0])
        v = attention.value_proj(x[0])
        parts = [slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS) for head in range(HEADS)]
        expected = torch.cat([softmax_attention(q[part], k[:, part], v[:, part]) for part in parts])
        torch.testing.assert_close(output[0, 3], attention.out_proj(expected), rtol=1e-3, atol=1e-4)


def test_the_encoder_scales_positions_by_content():
    model = add_noise(tiny("dab_detr")).eval()
    calls = record(model.encoder.layers)
    with torch.no_grad():
        memory = model.encode(model.preprocess(random_batch()))
    (tokens, position, _), output = calls[0]
    torch.testing.assert_close(tokens, memory.features)
    torch.testing.assert_close(output, memory.tokens)
    torch.testing.assert_close(position, memory.position * model.encoder.position_scale(memory.features))


def test_there_is_one_query_per_pattern_and_anchor():
    model, _, _, _, _, queries, _ = run("dab_detr.patterns")
    anchors = model.anchors.weight.sigmoid()
    for pattern in range(2):
        for anchor in range(10):
            query = pattern * 10 + anchor
            torch.testing.assert_close(queries.content[1, query], model.patterns.weight[pattern])
            torch.testing.assert_close(queries.reference[1, query], anchors[anchor])


def test_anchor_centers_are_initially_spread_out():
    centers = tiny("dab_detr").anchors.weight[:, :2].sigmoid()
    assert centers.min() < 0.1
    assert centers.max() > 0.9
    assert centers.mean().item() == pytest.approx(0.5, abs=0.1)
