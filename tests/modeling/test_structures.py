import torch

from clockdistill.modeling import Predictions, Queries, Target
from clockdistill.modeling.structures import pad_targets


def make(count, group=None, padding=None, images=2):
    return Queries(torch.randn(images, count, 4), torch.rand(images, count, 4), group, padding)


def test_attention_mask_equals_a_loop():
    padding = torch.tensor([[False, True, True], [False, False, True]])
    queries = Queries.cat([make(2), make(4, group=torch.tensor([0, 0, 1, 1])), make(3, padding=padding)])
    group = [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert queries.group.tolist() == group
    mask = queries.attention_mask()
    for b in range(2):
        for i in range(9):
            for j in range(9):
                unfilled = j >= 6 and bool(padding[b, j - 6])
                assert mask[b, i, j].item() == (i != j and (group[i] != group[j] or unfilled))


def test_every_head_of_an_image_has_its_mask():
    queries = make(3, padding=torch.tensor([[False, True, True], [False, False, True]]))
    mask = queries.attention_mask(num_heads=3)
    torch.testing.assert_close(mask.view(2, 3, 3, 3), queries.attention_mask()[:, None].expand(-1, 3, -1, -1))


def test_positions_stay_beside_their_queries():
    parts = [make(2), make(3)]
    for part in parts:
        part.position = torch.randn_like(part.content)
    torch.testing.assert_close(Queries.cat(parts).position[:, 2:], parts[1].position)
    assert Queries.cat([make(2), make(3)]).position is None


def test_a_single_group_needs_no_mask():
    assert make(3).attention_mask() is None


def test_cat_of_nothing_and_something():
    assert len(Queries.cat([make(2), make(0), make(1)])) == 3


def test_predictions_split_along_queries():
    predictions = Predictions(torch.randn(2, 1, 5, 3), torch.rand(2, 1, 5, 4))
    first, second = predictions.split([2, 3])
    torch.testing.assert_close(second.boxes, predictions.boxes[:, :, 2:])
    assert first.logits.shape == (2, 1, 2, 3)


def test_pad_targets():
    targets = [Target(torch.tensor([2, 1]), torch.rand(2, 4)), Target(torch.zeros(0).long(), torch.zeros(0, 4))]
    labels, boxes, padding = pad_targets(targets)
    assert labels[0].tolist() == [2, 1]
    assert padding.tolist() == [[False, False], [True, True]]
    torch.testing.assert_close(boxes[0], targets[0].boxes)
    assert pad_targets(targets[1:])[0].shape == (1, 1)
