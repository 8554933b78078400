import torch

from clockdistill.modeling import ContrastiveDenoising, Predictions, Queries, Target, Targets


def make(count, images=2, **kwargs):
    return Queries(torch.randn(images, count, 4), torch.rand(images, count, 4), **kwargs)


def test_attention_mask_equals_a_loop():
    """Denoising queries attend to their group and to the objects', as in DINO; nothing else crosses a group."""
    targets = [
        Target(torch.tensor([0, 1, 2]), torch.rand(3, 4) * 0.2 + 0.4),
        Target(torch.tensor([1]), torch.rand(1, 4) * 0.2 + 0.4),
    ]
    denoising, _, num_groups = ContrastiveDenoising(3, 4, num_queries=6, label_noise=0.5, box_noise=1.0)(
        Targets(targets)
    )
    assert (num_groups, len(denoising)) == (2, 12)
    padding = torch.tensor([[False, False, False], [False, True, True]])
    mask = Queries.cat([make(5), denoising, make(3, padding=padding)]).attention_mask()

    kind = ["object"] * 5 + ["denoising 0"] * 6 + ["denoising 1"] * 6 + ["target"] * 3
    # a denoising group has three positive and then three negative queries
    number = [0] * 5 + [0, 1, 2] * 4 + [0, 1, 2]
    count = [3, 1]
    assert mask.shape == (2, 20, 20)
    for b in range(2):
        for i in range(20):
            for j in range(20):
                exists = kind[j] == "object" or number[j] < count[b]
                same = kind[i] == kind[j]
                looks_up = kind[i].startswith("denoising") and kind[j] == "object"
                may = i == j or (exists and (same or looks_up))
                assert mask[b, i, j].item() == (not may), (b, i, j)


def test_every_head_of_an_image_has_its_mask():
    queries = make(3, padding=torch.tensor([[False, True, True], [False, False, True]]))
    mask = queries.attention_mask(num_heads=3)
    torch.testing.assert_close(mask.view(2, 3, 3, 3), queries.attention_mask()[:, None].expand(-1, 3, -1, -1))


def test_positions_stay_with_their_queries():
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


def test_targets_are_padded_to_the_largest_number_of_objects():
    targets = [Target(torch.tensor([2, 1]), torch.rand(2, 4)), Target(torch.zeros(0).long(), torch.zeros(0, 4))]
    padded = Targets(targets)
    assert list(padded) == targets
    assert padded.labels[0].tolist() == [2, 1]
    assert padded.padding.tolist() == [[False, False], [True, True]]
    torch.testing.assert_close(padded.boxes[0], targets[0].boxes)
    assert Targets(targets[1:]).labels.shape == (1, 1)


def test_ignored_regions_are_padded_like_objects():
    nothing = Target(torch.zeros(0).long(), torch.zeros(0, 4))
    region = Target(torch.tensor([1, 2]), torch.rand(2, 4))
    ignored = Targets([nothing, nothing._replace(ignored=region)]).ignored
    assert ignored.labels.tolist() == [[0, 0], [1, 2]]
    assert ignored.padding.tolist() == [[True, True], [False, False]]
    assert Targets([nothing, nothing._replace(ignored=nothing)]).ignored is None
