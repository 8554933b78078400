import torch

from clockdistill.modeling.transformer import FeedForward, cell_anchors, cell_centers, flatten_levels


def test_the_feed_forward_network_is_the_same_with_and_without_gradients():
    ffn, x = FeedForward(6, 20), torch.randn(2, 3, 6)
    before = x.clone()
    with torch.no_grad():
        y = ffn(x)
    torch.testing.assert_close(y, ffn(x), rtol=0, atol=0)
    torch.testing.assert_close(y, (x @ ffn[0].weight.T + ffn[0].bias).clamp(min=0) @ ffn[2].weight.T + ffn[2].bias)
    assert torch.equal(x, before)
    assert torch.autograd.gradcheck(ffn.double(), x.double().requires_grad_())


def test_anchors_are_valid_inside_the_image_and_away_from_its_border():
    """Of 60 unpadded cells, the centers of the first and the last are less than 0.01 from the border."""
    shapes, widths = [(3, 120), (2, 60)], [60, 30]
    maps = [torch.zeros(1, 4, *shape) for shape in shapes]
    masks = [torch.ones(1, *shape, dtype=torch.bool) for shape in shapes]
    for mask, width in zip(masks, widths, strict=True):
        mask[..., :width] = False
    logits, invalid = cell_anchors(flatten_levels(maps, masks, maps))
    assert logits[invalid.expand_as(logits)].isposinf().all()
    finest, coarser = invalid[0, :360].view(3, 120), invalid[0, 360:].view(2, 60)
    assert (~finest).nonzero().tolist() == [[row, column] for row in range(3) for column in range(1, 59)]
    assert (~coarser).nonzero().tolist() == [[row, column] for row in range(2) for column in range(30)]
    box = logits[0, 360 + 60 + 7].sigmoid()
    torch.testing.assert_close(box, torch.tensor([7.5 / 30, 1.5 / 2, 0.1, 0.1]))


def test_cells_on_the_border_of_proposals_are_the_same_with_and_without_padding():
    """50 rows, as of a short side of 800 pixels at stride 16: the centers of the first and last are 0.01 and 0.99."""
    for padded in range(50, 200):
        mask = (torch.arange(padded) >= 50)[None, :, None]
        level = torch.zeros(1, 4, padded, 1)
        centers = cell_centers(flatten_levels([level], [mask], [level]))[0, :50, 1]
        assert torch.equal((centers > 0.01) & (centers < 0.99), (torch.arange(50) % 49 > 0)), padded
