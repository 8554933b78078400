"""Properties of every family and variant."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, ImageList, Instances

from clockdistill.errors import UserError
from clockdistill.modeling import Queries
from helpers.models import VARIANTS, add_noise, model_config, random_batch, random_queries, tiny

variants = pytest.mark.parametrize("variant", VARIANTS)
CLOSE = dict(rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "num_classes", "count"),
    [
        ("dino", 80, 47_650_316),
        # one more level: a 1x1 convolution and its norm, an embedding, offsets and weights of 12 attentions
        ("dino.5scale", 80, 47_650_316 + 256 * 257 + 2 * 256 + 256 + 12 * (64 + 32) * 257),
        ("deformable_detr", 80, 40_066_838),
        # the official repository's head has one output per COCO category id
        ("deformable_detr", 91, 40_069_665),
        ("deformable_detr.refine", 91, 40_849_660),
        ("deformable_detr.two_stage", 91, 41_181_529),
        ("dab_detr", 80, 43_668_690),
        ("dab_detr.dc5", 80, 43_668_690),
        ("dab_detr.patterns", 80, 43_668_690 + 3 * 256),
    ],
)
def test_full_size_models_have_the_reference_implementations_parameters(variant, num_classes, count):
    config = model_config(variant)
    config.num_classes = num_classes
    with torch.device("meta"):
        model = instantiate(config)
    assert sum(p.numel() for p in model.parameters()) == count


@variants
@pytest.mark.parametrize("counts", [(3, 0), (0, 0)], ids=["objects", "no objects"])
def test_training_reaches_every_parameter(variant, counts):
    model = tiny(variant)
    losses = model(random_batch(counts=counts))
    assert {"loss_class", "loss_bbox", "loss_giou", "loss_class_0"} <= losses.keys()
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@variants
def test_target_queries_change_neither_losses_nor_object_queries(variant):
    model = add_noise(tiny(variant)).train()
    model.backbone.eval()
    batch = random_batch(counts=(3, 1))
    target_queries = random_queries(model, torch.tensor([[False, False, False], [False, True, True]]))
    with torch.no_grad():
        torch.manual_seed(0)
        expected = model(batch)
        torch.manual_seed(0)
        losses, outputs = model(batch, extra_queries={"targets": target_queries}, with_outputs=True)
        objects = model.decode(outputs.memory, model.propose(outputs.memory))
        alone = model.decode(outputs.memory, target_queries)
    torch.testing.assert_close(losses, expected, **CLOSE)
    torch.testing.assert_close(outputs.object_predictions, objects, **CLOSE)
    torch.testing.assert_close(outputs.target_predictions, alone, **CLOSE)


@variants
def test_padded_slots_do_not_change_the_predictions(variant):
    model = add_noise(tiny(variant)).eval()
    with torch.no_grad():
        memory = model.encode(model.preprocess(random_batch()[:1]))
        padded = random_queries(model, torch.tensor([[False, False, True, True]]))
        position = None if padded.position is None else padded.position[:, :2]
        queries = Queries(padded.content[:, :2], padded.reference[:, :2], position=position)
        expected = model.decode(memory, queries)
        torch.testing.assert_close(model.decode(memory, padded).split([2, 2])[0], expected, **CLOSE)


@variants
def test_padding_changes_neither_memory_nor_queries(variant):
    """From the neck's maps on. Before that, convolutions and group norm see the padding, as in every DETR."""
    model = add_noise(tiny(variant)).eval()
    if getattr(model, "proposal_norm", None) is not None:
        # invalid cells score 0 in all classes without biases, so that valid cells with higher scores are selected
        for module in (model.proposal_proj, model.proposal_norm, model.class_heads[-1]):
            torch.nn.init.zeros_(module.bias)

    def encode(maps, masks):
        memory = model.encoder(maps, masks, [model.position_embedding(mask) for mask in masks])
        return memory, model.propose(memory)

    levels = len(model.strides)
    shapes = [
        [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)][:levels],
        [(10, 7), (5, 4), (3, 2), (2, 1), (1, 1)][:levels],
    ]
    canvas = [(10, 14), (5, 7), (3, 4), (2, 2), (1, 1)][:levels]
    alone = [[torch.randn(1, 32, *shape) for shape in image] for image in shapes]
    maps = [torch.randn(2, 32, *shape) * 50 for shape in canvas]
    masks = [torch.ones(2, *shape, dtype=torch.bool) for shape in canvas]
    for image, sizes in enumerate(shapes):
        for level, (height, width) in enumerate(sizes):
            maps[level][image, :, :height, :width] = alone[image][level][0]
            masks[level][image, :height, :width] = False
    with torch.no_grad():
        memory, queries = encode(maps, masks)
        for image, sizes in enumerate(shapes):
            no_padding = [torch.zeros(1, *shape, dtype=torch.bool) for shape in sizes]
            expected, expected_queries = encode(alone[image], no_padding)
            assert (expected_queries.reference < 1).all(), "this test needs queries of valid cells only"
            valid = memory.tokens[image][~memory.padding_mask[image]]
            torch.testing.assert_close(valid, expected.tokens[0], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(queries.reference[image], expected_queries.reference[0], rtol=1e-3, atol=1e-4)


@variants
def test_a_batch_of_different_sizes_equals_each_image_alone_on_the_same_canvas(variant):
    """The canvas has to be the same: DINO's position encoding of anchors depends on it, as in the reference."""
    model = add_noise(tiny(variant)).eval()
    batch = random_batch(sizes=((64, 96), (96, 64), (50, 70)), counts=(1, 1, 1))
    images = model.preprocess(batch)
    with torch.no_grad():
        memory = model.encode(images)
        together = model.decode(memory, model.propose(memory))
        for i, size in enumerate(images.image_sizes):
            memory = model.encode(ImageList(images.tensor[i : i + 1], [size]))
            alone = model.decode(memory, model.propose(memory))
            torch.testing.assert_close(together.logits[:, i], alone.logits[:, 0], **CLOSE)
            torch.testing.assert_close(together.boxes[:, i], alone.boxes[:, 0], **CLOSE)


@variants
def test_every_layer_has_a_prediction_for_every_query(variant):
    model = tiny(variant, decoder_layers=3).eval()
    with torch.no_grad():
        memory = model.encode(model.preprocess(random_batch()))
        logits, boxes = model.decode(memory, model.propose(memory))
    assert logits.shape == (3, 2, 20, 3)
    assert boxes.shape == (3, 2, 20, 4)
    assert ((boxes > 0) & (boxes < 1)).all()


@variants
def test_instances_are_sorted_by_score_and_have_the_output_size(variant):
    model = add_noise(tiny(variant)).eval()
    (batch,) = random_batch(sizes=((64, 96),), counts=(2,))
    with torch.no_grad():
        same = model([batch])[0]["instances"]
        twice = model([{**batch, "height": 128, "width": 192}])[0]["instances"]
    assert 0 < len(same) <= model.detections_per_image
    assert (same.scores.diff() <= 0).all()
    assert same.pred_classes.max() < model.num_classes
    assert twice.image_size == (128, 192)
    torch.testing.assert_close(twice.pred_boxes.tensor, same.pred_boxes.tensor * 2)


@variants
def test_padding_mask_and_valid_ratios_follow_image_sizes(variant):
    model = tiny(variant)
    memory = model.encode(ImageList.from_tensors([torch.rand(3, 128, 192), torch.rand(3, 64, 96)]))
    assert memory.spatial_shapes.shape == (len(model.strides), 2)
    assert memory.tokens.shape == (2, memory.spatial_shapes.prod(1).sum(), model.embed_dim)
    height, width = memory.spatial_shapes[0].tolist()
    finest = memory.padding_mask[1, : height * width].view(height, width)
    assert not finest[: height // 2, : width // 2].any()
    assert finest[height // 2 :].all()
    assert finest[:, width // 2 :].all()
    torch.testing.assert_close(memory.valid_ratios[1, 0], torch.tensor([0.5, 0.5]))


@variants
def test_ignored_regions_are_not_background(variant):
    model = tiny(variant)
    batch = random_batch(counts=(0, 0))
    # without objects there is no denoising
    background_losses = {k: v for k, v in model(batch).items() if "class" in k and "_dn" not in k}
    for x in batch:
        everywhere = Boxes(torch.tensor([[0.0, 0.0, 96.0, 64.0]] * 3))
        x["ignored"] = Instances((64, 96), gt_boxes=everywhere, gt_classes=torch.arange(3))
    losses = model(batch)
    for name, value in background_losses.items():
        if variant == "deformable_detr.two_stage" and name == "loss_class_enc":
            # its proposals have only class 0 as objects; for the other classes they remain background
            assert 0 < losses[name] < 0.7 * value
        else:
            assert losses[name] == 0 < value, name


@variants
def test_degenerate_boxes_are_dropped(variant):
    model = tiny(variant)
    batch = random_batch(counts=(3, 1))
    batch[0]["instances"].gt_boxes.tensor[1, 2] = batch[0]["instances"].gt_boxes.tensor[1, 0]
    assert [len(t.labels) for t in model.targets(batch)] == [2, 1]


@variants
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_boxes_stay_float32_in_mixed_precision(variant, dtype):
    """bfloat16 can represent only 256 positions in an image. Boxes without extent must not give NaN."""
    model = add_noise(tiny(variant)).eval()
    target_queries = random_queries(model, torch.zeros(2, 3, dtype=torch.bool))
    target_queries.reference[:, 0, 2:] = 1e-7
    with torch.no_grad():
        # an untrained backbone overflows float16
        memory = model.encode(model.preprocess(random_batch()))
    with torch.no_grad(), torch.autocast("cpu", dtype):
        queries = model.propose(memory)
        for query_set in (queries, target_queries):
            predictions = model.decode(memory, query_set)
            assert predictions.boxes.dtype == query_set.reference.dtype == torch.float32
            assert predictions.boxes.isfinite().all()
            assert predictions.logits.isfinite().all()


def test_scores_that_are_not_numbers_end_in_a_sentence():
    model = tiny().eval()
    torch.nn.init.constant_(model.class_heads[-2].bias, float("nan"))
    with pytest.raises(UserError, match="scores are NaN or infinite: use an earlier checkpoint"):
        model(random_batch())
