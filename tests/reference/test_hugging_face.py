"""Compare Deformable DETR and DAB-DETR with Hugging Face's implementations. There is none of DINO.

These tests do not run by default, since they need another package:

    pip install transformers
    python -m pytest tests/reference
"""

from functools import partial

import pytest
import torch
from detectron2.config import instantiate
from transformers import (
    DabDetrConfig,
    DabDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    ResNetConfig,
)
from transformers.models.dab_detr import modeling_dab_detr

from clockdistill.layers import inverse_sigmoid
from clockdistill.modeling.backbone import BLOCKS
from helpers.models import VARIANTS, add_noise, model_config, random_batch
from helpers.reference_checkpoints import name_pairs, small_detector

CLOSE = dict(rtol=0, atol=1e-4)


def backbone_config(model):
    stages = ["res2", "res3", "res4", "res5"]
    return ResNetConfig(
        embedding_size=model.backbone.stem.out_channels,
        hidden_sizes=[getattr(model.backbone, stage)[-1].out_channels for stage in stages],
        depths=list(BLOCKS[50]),
        layer_type="bottleneck",
        out_features=[f"stage{stages.index(name) + 1}" for name in model.neck.in_features],
    )


def fused_attention(model):
    """The projections that torch's multi-head attention fuses, with Hugging Face's names."""
    stacks = {"encoder": model.encoder.layers, "decoder": model.decoder.layers}
    weights = {}
    for stack, layers in stacks.items():
        for index, layer in enumerate(layers):
            if not isinstance(layer.self_attn, torch.nn.MultiheadAttention):
                continue
            for part in ("weight", "bias"):
                fused = getattr(layer.self_attn, f"in_proj_{part}")
                for name, value in zip(("q_proj", "k_proj", "v_proj"), fused.chunk(3), strict=True):
                    weights[f"model.{stack}.layers.{index}.self_attn.{name}.{part}"] = value
    return weights


def deformable_detr(model):
    config = DeformableDetrConfig(
        backbone_config=backbone_config(model),
        d_model=model.embed_dim,
        num_labels=model.num_classes,
        num_queries=model.num_queries,
        two_stage_num_proposals=model.num_queries,
        two_stage=model.two_stage,
        with_box_refine=model.decoder.refine,
        num_feature_levels=len(model.strides),
        encoder_n_points=model.encoder.layers[0].self_attn.num_points,
        decoder_n_points=model.decoder.layers[0].cross_attn.num_points,
        **depths_and_widths(model),
    )
    other = DeformableDetrForObjectDetection(config)
    untie(other.class_embed)
    untie(other.bbox_embed)
    if model.decoder.refine:
        other.model.decoder.bbox_embed = other.bbox_embed
    if model.two_stage:
        other.model.decoder.class_embed = other.class_embed
    return other


def untie(heads):
    """Give each layer's head its own parameters, since Hugging Face may tie them."""
    for module in heads.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(parameter.detach().clone()))


def dab_detr(model):
    config = DabDetrConfig(
        backbone_config=backbone_config(model),
        hidden_size=model.embed_dim,
        num_labels=model.num_classes,
        num_queries=model.anchors.num_embeddings,
        num_patterns=0 if model.patterns is None else model.patterns.num_embeddings,
        auxiliary_loss=True,
        **depths_and_widths(model),
    )
    other = DabDetrForObjectDetection(config)
    if model.backbone.output_shape()["res5"].stride == 16:
        dilate(other.model.backbone.conv_encoder.model.encoder.stages[3])
    return other


def dilate(stage):
    """Replace a stage's stride by dilation as torchvision does; Hugging Face's ResNet has no option for it."""
    first, *others = stage.layers
    first.shortcut.convolution.stride = first.layer[1].convolution.stride = (1, 1)
    for block in others:
        block.layer[1].convolution.dilation = block.layer[1].convolution.padding = (2, 2)


def depths_and_widths(model):
    config = {}
    for stack, layers in (("encoder", model.encoder.layers), ("decoder", model.decoder.layers)):
        config |= {
            f"{stack}_layers": len(layers),
            f"{stack}_attention_heads": layers[0].self_attn.num_heads,
            f"{stack}_ffn_dim": layers[0].ffn[0].out_features,
        }
    return config


def predict_all_layers(other, images):
    """Logits and boxes of all decoder layers, which Hugging Face only passes to its loss."""
    outputs = []
    other.loss_function = lambda *args: outputs.extend(args[-2:]) or (None, None, None)
    valid = torch.zeros(len(images), *images.tensor.shape[-2:], dtype=torch.long)
    for mask, (height, width) in zip(valid, images.image_sizes, strict=True):
        mask[:height, :width] = 1
    other(pixel_values=images.tensor, pixel_mask=valid, labels=[])
    return outputs


@pytest.fixture(autouse=True)
def authors_eps(monkeypatch):
    """Clip the logits of DAB-DETR's boxes as its authors do, and not as Hugging Face does."""
    monkeypatch.setattr(modeling_dab_detr, "inverse_sigmoid", partial(inverse_sigmoid, eps=1e-3))


def compare(variant, model, sizes, seed=0):
    other = (dab_detr if variant.startswith("dab_detr") else deformable_detr)(model)
    state = model.state_dict()
    weights = {name: state[model_name] for name, model_name in name_pairs("hugging_face", variant)}
    other.load_state_dict(weights | fused_attention(model), strict=True)

    images = model.preprocess(random_batch(sizes=sizes, seed=seed))
    with torch.no_grad():
        memory = model.encode(images)
        predictions = model.decode(memory, model.propose(memory))
        logits, boxes = predict_all_layers(other.eval(), images)
    assert logits.shape == predictions.logits.shape
    assert len(logits) == len(model.decoder.layers)
    torch.testing.assert_close(predictions.logits, logits, **CLOSE)
    torch.testing.assert_close(predictions.boxes, boxes, **CLOSE)
    assert predictions.logits.std() > 0.1


each_variant = pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("dino")])


@each_variant
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_predictions_of_all_layers_match(variant, seed):
    model = small_detector("authors", variant, seed=seed)
    compare(variant, model, ((128, 192), (160, 100)), seed)


@each_variant
def test_predictions_of_full_size_models_match(variant):
    torch.manual_seed(0)
    model = add_noise(instantiate(model_config(variant)), scale=0.02).eval()
    compare(variant, model, ((320, 480), (400, 300)))
