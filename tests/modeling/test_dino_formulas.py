"""A second implementation of DINO, for one image, from the formulas of its paper and of those it builds on.

All functions read the weights `w` by the names that DINO's authors give them.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from clockdistill.modeling.detector import padding_masks
from clockdistill.modeling.weights import load_weights
from helpers.models import random_batch
from helpers.reference_checkpoints import small_detector, source_state_dict


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w, name, x):
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def mlp(w, name, x, depth):
    for index in range(depth):
        x = linear(w, f"{name}.layers.{index}", x)
        x = x.relu() if index < depth - 1 else x
    return x


def feed_forward(w, name, x):
    return linear(w, f"{name}.linear2", linear(w, f"{name}.linear1", x).relu())


def sines(angle, width, temperature):
    """Sines in even channels and cosines in odd ones; each pair has the same wavelength."""
    phases = [angle / temperature ** (i // 2 * 2 / width) for i in range(width)]
    return torch.stack([phase.cos() if i % 2 else phase.sin() for i, phase in enumerate(phases)], -1)


def logit(x):
    return (x.clamp(1e-3, 1) / (1 - x).clamp(1e-3, 1)).log()


def deformable_attention(w, name, query, tokens, masks, reference, heads=4, points=2):
    """(Q, C) from queries (Q, C), tokens (N, C), a padding mask per level, and points or boxes (Q, levels, 2 or 4)."""
    num_queries, levels = len(query), len(masks)
    padding = torch.cat([mask.flatten() for mask in masks])
    value = linear(w, f"{name}.value_proj", tokens)
    value = torch.where(padding[:, None], 0, value).view(len(tokens), heads, -1)
    offsets = linear(w, f"{name}.sampling_offsets", query).view(num_queries, heads, levels, points, 2)
    weights = linear(w, f"{name}.attention_weights", query).view(num_queries, heads, levels * points).softmax(-1)
    weights = weights.view(num_queries, heads, levels, points)
    output = torch.zeros(num_queries, heads, value.shape[-1])
    start = 0
    for level, (height, width) in enumerate(mask.shape for mask in masks):
        cells = value[start : start + height * width].view(height, width, heads, -1)
        start += height * width
        for head in range(heads):
            for point in range(points):
                offset = offsets[:, head, level, point]
                if reference.shape[-1] == 2:
                    offset = offset / torch.tensor([width, height])
                else:
                    offset = offset / points * reference[:, level, 2:] / 2
                grid = 2 * (reference[:, level, :2] + offset) - 1
                sampled = F.grid_sample(cells[:, :, head].permute(2, 0, 1)[None], grid[None, None], align_corners=False)
                output[:, head] += weights[:, head, level, point, None] * sampled[0, :, 0].T
    return linear(w, f"{name}.output_proj", output.flatten(1))


def self_attention(w, name, query, value, heads=4):
    width = query.shape[1] // heads
    weight, bias = w[f"{name}.in_proj_weight"].chunk(3), w[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (x @ a.T + b for x, a, b in zip((query, query, value), weight, bias))
    output = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        output.append((q[:, part] @ k[:, part].T / math.sqrt(width)).softmax(-1) @ v[:, part])
    return linear(w, f"{name}.out_proj", torch.cat(output, 1))


def reference_dino(w, maps, masks, num_queries):
    """Memory (N, C) and the logits (Q, K) and boxes (Q, 4) of each decoder layer, from the neck's maps (C, H_l, W_l).

    Args:
        masks: (H_l, W_l), True on padding.
    """
    tokens = torch.cat([x.flatten(1).T for x in maps])
    channels = tokens.shape[1]
    position, centers, sizes, ratios = [], [], [], []
    for level, mask in enumerate(masks):
        rows, columns = mask.shape
        y, x = (~mask).cumsum(0), (~mask).cumsum(1)
        height, width = y[-1, 0].item(), x[0, -1].item()
        angles = y / (y[-1:] + 1e-6) * 2 * math.pi, x / (x[:, -1:] + 1e-6) * 2 * math.pi
        encoded = torch.cat([sines(angle, channels // 2, 20) for angle in angles], -1)
        position.append(encoded.view(-1, channels) + w["transformer.level_embed"][level])
        grid_y, grid_x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        centers.append(torch.stack((grid_x / width, grid_y / height), -1).view(-1, 2))
        sizes.append(torch.full((rows * columns, 2), 0.05 * 2**level))
        ratios.append([width / columns, height / rows])
    position, centers, ratios = torch.cat(position), torch.cat(centers), torch.tensor(ratios)

    reference = centers[:, None] * ratios
    for layer in range(6):
        name = f"transformer.encoder.layers.{layer}"
        attended = deformable_attention(w, f"{name}.self_attn", tokens + position, tokens, masks, reference)
        tokens = layer_norm(w, f"{name}.norm1", tokens + attended)
        tokens = layer_norm(w, f"{name}.norm2", tokens + feed_forward(w, name, tokens))
    memory = tokens

    anchors = torch.cat((centers, torch.cat(sizes)), 1)
    valid = ((anchors > 0.01) & (anchors < 0.99)).all(1) & ~torch.cat([mask.flatten() for mask in masks])
    proposals = linear(w, "transformer.enc_output", torch.where(valid[:, None], memory, 0))
    proposals = layer_norm(w, "transformer.enc_output_norm", proposals)
    scores = linear(w, "transformer.enc_out_class_embed", proposals).amax(1)
    best = scores.argsort(descending=True)[:num_queries]
    start = torch.where(valid[:, None], (anchors / (1 - anchors)).log(), math.inf)
    boxes = (mlp(w, "transformer.enc_out_bbox_embed", proposals, 3) + start)[best].sigmoid()

    content, twice, logits, all_boxes = w["transformer.tgt_embed.weight"], boxes, [], []
    for layer in range(6):
        name = f"transformer.decoder.layers.{layer}"
        reference = boxes[:, None] * torch.cat((ratios, ratios), 1)
        cx, cy, width, height = (reference[:, 0] * 2 * math.pi).unbind(1)
        encoded = torch.cat([sines(angle, channels // 2, 10000) for angle in (cy, cx, width, height)], 1)
        query_position = mlp(w, "transformer.decoder.ref_point_head", encoded, 2)
        attended = self_attention(w, f"{name}.self_attn", content + query_position, content)
        content = layer_norm(w, f"{name}.norm2", content + attended)
        attended = deformable_attention(w, f"{name}.cross_attn", content + query_position, memory, masks, reference)
        content = layer_norm(w, f"{name}.norm1", content + attended)
        content = layer_norm(w, f"{name}.norm3", content + feed_forward(w, name, content))

        normed = layer_norm(w, "transformer.decoder.norm", content)
        logits.append(linear(w, f"class_embed.{layer}", normed))
        # look forward twice: the loss sees the previous layer's refined boxes; the next layer's come before the norm
        all_boxes.append((mlp(w, f"bbox_embed.{layer}", normed, 3) + logit(twice)).sigmoid())
        twice = (mlp(w, f"bbox_embed.{layer}", content, 3) + logit(boxes)).sigmoid()
        boxes = twice
    return memory, torch.stack(logits), torch.stack(all_boxes)


@pytest.mark.parametrize("variant", ["dino", "dino.5scale"])
def test_outputs_match_the_formulas_of_the_papers(tmp_path, variant):
    source = small_detector("authors", variant, seed=2, num_queries=12)
    # the first layer makes boxes so narrow that their logits are clipped
    source.box_heads[0].layers[-1].bias.data[2] -= 8
    weights = source_state_dict("authors", variant, source)
    torch.save({"model": weights}, tmp_path / "authors.pth")
    model = small_detector("authors", variant, seed=1, num_queries=12)
    load_weights(model, str(tmp_path / "authors.pth"), strict=True)
    images = model.preprocess(random_batch(sizes=((64, 96), (96, 70))))
    with torch.no_grad():
        maps = model.neck(model.backbone(images.tensor))
        masks = padding_masks(images, [x.shape[-2:] for x in maps])
        memory = model.encode(images)
        predictions = model.decode(memory, model.propose(memory))
        for i in range(2):
            tokens, logits, boxes = reference_dino(weights, [x[i] for x in maps], [mask[i] for mask in masks], 12)
            torch.testing.assert_close(memory.tokens[i], tokens, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(predictions.logits[:, i], logits, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(predictions.boxes[:, i], boxes, rtol=1e-5, atol=1e-5)
            assert boxes[0, :, 2].max() < 1e-3
