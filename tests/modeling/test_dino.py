import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import ImageList

from clockdistill.errors import UserError
from clockdistill.modeling import Queries, build_resnet
from clockdistill.modeling.transformer import cell_centres, valid_ratio
from tiny import CONFIGS, random_batch, roughen, tiny_dino


def test_the_default_model_has_the_reference_implementations_parameters():
    model = instantiate(LazyConfig.load(str(CONFIGS / "common" / "models" / "dino.py")).model)
    assert sum(p.numel() for p in model.parameters()) == 47_650_316


@pytest.mark.parametrize(("depth", "channels"), [(18, 512), (34, 512), (50, 2048), (101, 2048)])
def test_resnets_have_torchvisions_parameters(depth, channels):
    torchvision = pytest.importorskip("torchvision.models")
    ours = build_resnet(depth, norm="BN", freeze_at=0)
    assert ours.output_shape()["res5"].channels == channels
    with torch.device("meta"):
        theirs = getattr(torchvision, f"resnet{depth}")()
    without_classifier = sum(p.numel() for name, p in theirs.named_parameters() if not name.startswith("fc."))
    assert sum(p.numel() for p in ours.parameters()) == without_classifier


def test_no_resnet_of_unknown_depth():
    with pytest.raises(UserError, match="choose one of"):
        build_resnet(20)


def test_training_reaches_every_parameter():
    model = tiny_dino()
    losses = model(random_batch(counts=(3, 0)))
    assert {"loss_class", "loss_giou_0", "loss_bbox_dn", "loss_class_dn_0", "loss_giou_enc"} <= losses.keys()
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_batch_without_objects_reaches_every_parameter_too():
    model = tiny_dino()
    losses = model(random_batch(counts=(0, 0)))
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_target_and_denoising_queries_change_no_object_query():
    model = roughen(tiny_dino()).eval()
    batch = random_batch(counts=(3, 1))
    with torch.no_grad():
        memory = model.encode(model.preprocess(batch))
        objects = model.propose(memory)
        denoising, _, _ = model.denoising(model.targets(batch))
        padding = torch.tensor([[False, False, False], [False, True, True]])
        targets = Queries(torch.randn(2, 3, 32), torch.rand(2, 3, 4), padding=padding)
        alone = model.decode(memory, objects)
        together = model.decode(memory, Queries.cat([objects, denoising, targets]))
        first, _, last = together.split([len(objects), len(denoising), 3])
        targets_alone = model.decode(memory, targets)
    torch.testing.assert_close(first.logits, alone.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.boxes, alone.boxes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last.logits, targets_alone.logits, rtol=1e-4, atol=1e-5)


def test_padded_target_slots_change_nothing():
    model = roughen(tiny_dino()).eval()
    with torch.no_grad():
        memory = model.encode(model.preprocess(random_batch()[:1]))
        content, boxes = torch.randn(1, 4, 32), torch.rand(1, 4, 4)
        padded = Queries(content, boxes, padding=torch.tensor([[False, False, True, True]]))
        outputs = model.decode(memory, padded).split([2, 2])[0]
        expected = model.decode(memory, Queries(content[:, :2], boxes[:, :2]))
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_padding_changes_neither_memory_nor_proposals():
    """Given the neck's maps. Before them, convolution and group norm see the padding, as in every DETR."""
    model = roughen(tiny_dino()).eval()
    with torch.no_grad():
        model.proposal_norm.bias.zero_()

    def encode(maps, masks):
        memory = model.encoder(maps, masks, [model.position_embedding(mask) for mask in masks])
        return memory, model.propose(memory)

    shapes = {0: [(8, 12), (4, 6), (2, 3), (1, 2)], 1: [(10, 7), (5, 4), (3, 2), (2, 1)]}
    canvas = [(10, 14), (5, 7), (3, 4), (2, 2)]
    alone = {image: [torch.randn(1, 32, *shape) for shape in levels] for image, levels in shapes.items()}
    maps = [torch.randn(2, 32, *shape) * 50 for shape in canvas]
    masks = [torch.ones(2, *shape, dtype=torch.bool) for shape in canvas]
    for image, levels in shapes.items():
        for level, (height, width) in enumerate(levels):
            maps[level][image, :, :height, :width] = alone[image][level][0]
            masks[level][image, :height, :width] = False
    with torch.no_grad():
        memory, queries = encode(maps, masks)
        for image, levels in shapes.items():
            no_padding = [torch.zeros(1, *shape, dtype=torch.bool) for shape in levels]
            expected, expected_queries = encode(alone[image], no_padding)
            assert (expected_queries.reference < 1).all(), "no unfit cell may be among the chosen in this test"
            close = dict(rtol=1e-3, atol=1e-4)
            valid = memory.tokens[image][~memory.padding_mask[image]]
            torch.testing.assert_close(valid, expected.tokens[0], **close)
            torch.testing.assert_close(queries.reference[image], expected_queries.reference[0], **close)


def test_cells_on_the_border_of_proposals_are_the_same_with_and_without_padding():
    """50 rows, as of a short side of 800 pixels at stride 16: the centres of the first and last are 0.01 and 0.99."""
    for padded in range(50, 200):
        mask = (torch.arange(padded) >= 50)[None, :, None].expand(1, padded, 1)
        centres = cell_centres([(padded, 1)], valid_ratio(mask)[:, None])[0, :50, 1]
        assert torch.equal((centres > 0.01) & (centres < 0.99), (torch.arange(50) % 49 > 0)), padded


def test_images_of_different_sizes_give_in_one_batch_what_each_gives_alone_on_that_canvas():
    """The canvas itself counts: the decoder's position encoding sees it, as the reference implementation's does."""
    model = roughen(tiny_dino()).eval()
    batch = random_batch(sizes=((64, 96), (96, 64), (50, 70)), counts=(1, 1, 1))
    images = model.preprocess(batch)
    with torch.no_grad():
        memory = model.encode(images)
        together = model.decode(memory, model.propose(memory))
        for i, size in enumerate(images.image_sizes):
            memory = model.encode(ImageList(images.tensor[i : i + 1], [size]))
            alone = model.decode(memory, model.propose(memory))
            torch.testing.assert_close(together.logits[:, i], alone.logits[:, 0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(together.boxes[:, i], alone.boxes[:, 0], rtol=1e-4, atol=1e-4)


def test_boxes_come_back_in_the_wanted_size():
    model = roughen(tiny_dino()).eval()
    (batch,) = random_batch(sizes=((64, 96),), counts=(2,))
    with torch.no_grad():
        same = model([batch])[0]["instances"]
        twice = model([{**batch, "height": 128, "width": 192}])[0]["instances"]
    assert twice.image_size == (128, 192)
    torch.testing.assert_close(twice.pred_boxes.tensor, same.pred_boxes.tensor * 2)


def test_degenerate_boxes_are_dropped():
    model = tiny_dino()
    batch = random_batch(counts=(3, 1))
    batch[0]["instances"].gt_boxes.tensor[1, 2] = batch[0]["instances"].gt_boxes.tensor[1, 0]
    assert [len(t.labels) for t in model.targets(batch)] == [2, 1]


def test_padding_mask_follows_image_sizes():
    model = tiny_dino()
    images = ImageList.from_tensors([torch.rand(3, 64, 96), torch.rand(3, 32, 64)])
    memory = model.encode(images)
    finest = memory.padding_mask[1, : 8 * 12].view(8, 12)
    assert not finest[:4, :8].any()
    assert finest[4:].all()
    assert finest[:, 8:].all()
    torch.testing.assert_close(memory.valid_ratios[1, 0], torch.tensor([8 / 12, 4 / 8]))
