import torch
from torchvision.ops import box_convert

from clockdistill.modeling import ContrastiveDenoising, Target, Targets


def make_targets():
    boxes = torch.tensor([[0.5, 0.5, 0.1, 0.2], [0.4, 0.6, 0.2, 0.1], [0.5, 0.4, 0.1, 0.1]])
    first = Target(torch.tensor([0, 1, 2]), boxes)
    return Targets([first, Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]))])


def test_every_group_has_one_positive_query_per_object():
    targets = make_targets()
    queries, (image, query, target), groups = ContrastiveDenoising(3, 8, 9, 0.0, 1.0)(targets)
    assert groups == 3
    assert queries.content.shape == (2, 3 * 2 * 3, 8)
    assert (
        sorted(zip(image.tolist(), target.tolist(), strict=True))
        == [(0, t) for t in range(3) for _ in range(3)] + [(1, 0)] * 3
    )
    assert not queries.padding[image, query].any()
    assert queries.padding.sum().item() == 2 * 2 * 3


def test_positive_boxes_move_less_than_negative_ones():
    targets = make_targets()
    queries, (image, query, target), _ = ContrastiveDenoising(3, 8, 60, 0.0, 1.0)(targets)
    for b, q, t in zip(image.tolist(), query.tolist(), target.tolist(), strict=True):
        true = box_convert(targets[b].boxes[t], "cxcywh", "xyxy")
        half = targets[b].boxes[t, 2:].repeat(2) / 2
        positive = box_convert(queries.reference[b, q], "cxcywh", "xyxy")
        assert ((positive - true).abs() <= half * 1.0001).all()
        negative = queries.reference[b, q + 3]  # the other half of the group of two times three slots
        assert (negative[2:] > 0).all()
        moved = (box_convert(negative, "cxcywh", "xyxy") - true).abs() / half
        assert moved.max() >= 0.999


def test_labels_are_replaced_at_half_the_rate():
    torch.manual_seed(0)
    denoising = ContrastiveDenoising(1000, 1, 4000, 0.5, 0.0)
    with torch.no_grad():
        denoising.label_embedding.weight.copy_(torch.arange(1000.0)[:, None])
    queries, _, _ = denoising(Targets([Target(torch.tensor([7]), torch.full((1, 4), 0.5))]))
    replaced = (queries.content.flatten() != 7).float().mean()
    assert abs(replaced - 0.25) < 0.02


def test_without_noise_or_objects():
    targets = make_targets()
    denoising = ContrastiveDenoising(3, 8, 3, 0.0, 0.0)
    queries, (image, query, target), _ = denoising(targets)
    for b, q, t in zip(image.tolist(), query.tolist(), target.tolist(), strict=True):
        torch.testing.assert_close(queries.reference[b, q], targets[b].boxes[t])
        torch.testing.assert_close(queries.content[b, q], denoising.label_embedding.weight[targets[b].labels[t]])
    queries, (image, _, _), _ = denoising(Targets([Target(torch.zeros(0).long(), torch.zeros(0, 4))]))
    assert len(image) == 0
    assert queries.padding.all()
