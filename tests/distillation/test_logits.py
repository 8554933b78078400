import math

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou

from clockdistill.distillation import MatchedLogitLoss, TargetAwareLogitLoss
from clockdistill.distillation.logits import bernoulli_kl, spread_layers
from clockdistill.distillation.target_queries import TargetEmbedding
from clockdistill.modeling import HungarianMatcher, Outputs, Predictions, Target, Targets
from helpers.distillation import WEIGHTS
from helpers.models import VARIANTS, add_noise, random_batch, tiny


def make_predictions(layers=2, images=2, queries=3, classes=4, dtype=torch.float32):
    boxes = torch.rand(layers, images, queries, 4, dtype=dtype) * 0.4 + 0.2
    return Predictions(torch.randn(layers, images, queries, classes, dtype=dtype), boxes)


def make_targets(counts=(3, 1)):
    return Targets([Target(torch.randint(4, (n,)), torch.rand(n, 4) * 0.4 + 0.2) for n in counts])


def outputs_of(predictions):
    return Outputs(extra_predictions={"targets": predictions})


@pytest.mark.parametrize("weight_by_confidence", [True, False])
def test_loss_equals_a_loop(weight_by_confidence):
    teacher, student, targets = make_predictions(), make_predictions(), make_targets()
    loss = TargetAwareLogitLoss(**WEIGHTS, weight_by_confidence=weight_by_confidence)
    losses = loss(outputs_of(teacher), outputs_of(student), targets)
    divergence = l1 = overlap = 0.0
    for layer in range(2):
        terms = []
        for b, target in enumerate(targets):
            for i in range(len(target.labels)):
                p, q = teacher.logits[layer, b, i].sigmoid(), student.logits[layer, b, i].sigmoid()
                w = p.max() if weight_by_confidence else torch.tensor(1.0)
                kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
                a, c = teacher.boxes[layer, b, i], student.boxes[layer, b, i]
                iou = generalized_box_iou(
                    box_convert(a[None], "cxcywh", "xyxy"), box_convert(c[None], "cxcywh", "xyxy")
                )
                terms.append((w, kl, (a - c).abs().sum(), 1 - iou.squeeze()))
        total = sum(w for w, *_ in terms)
        divergence += sum(w * kl for w, kl, _, _ in terms) / total
        l1 += 5 * sum(w * d for w, _, d, _ in terms) / total
        overlap += 2 * sum(w * g for w, _, _, g in terms) / total
    torch.testing.assert_close(losses["class"], divergence)
    torch.testing.assert_close(losses["bbox"], l1)
    torch.testing.assert_close(losses["giou"], overlap)


def test_divergence_equals_its_definition_and_is_finite_for_large_logits():
    teacher, student = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.5])
    p, q = (teacher / 2).sigmoid(), (student / 2).sigmoid()
    expected = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    torch.testing.assert_close(bernoulli_kl(teacher, student, 2.0), expected)
    assert bernoulli_kl(torch.tensor([200.0, -200.0]), torch.tensor([-200.0, 200.0]), 1.0).isfinite().all()


def test_gradcheck():
    teacher, targets = make_predictions(dtype=torch.float64), make_targets()
    student = make_predictions(dtype=torch.float64)
    loss = TargetAwareLogitLoss(**WEIGHTS)
    assert torch.autograd.gradcheck(
        lambda logits, boxes: sum(loss(outputs_of(teacher), outputs_of(Predictions(logits, boxes)), targets).values()),
        (student.logits.requires_grad_(), student.boxes.requires_grad_()),
    )


def test_padded_slots_have_no_loss():
    teacher, student, targets = make_predictions(), make_predictions(), make_targets((3, 1))
    loss = TargetAwareLogitLoss(**WEIGHTS)
    expected = loss(outputs_of(teacher), outputs_of(student), targets)
    student.logits[:, 1, 1:] += 5
    student.boxes[:, 1, 1:] *= 0.5
    actual = loss(outputs_of(teacher), outputs_of(student), targets)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value)


def test_without_objects_there_is_no_loss():
    losses = TargetAwareLogitLoss(**WEIGHTS)(
        outputs_of(make_predictions(queries=1)), outputs_of(make_predictions(queries=1)), make_targets((0, 0))
    )
    assert all(value == 0 for value in losses.values())


@pytest.mark.parametrize(
    ("available", "num_layers", "chosen"),
    [(6, 3, [1, 3, 5]), (6, 6, [0, 1, 2, 3, 4, 5]), (3, 2, [1, 2]), (2, 3, [0, 1, 1])],
)
def test_layers_are_spread_and_end_with_the_last(available, num_layers, chosen):
    predictions = make_predictions(layers=available)
    spread = spread_layers(predictions, num_layers)
    torch.testing.assert_close(spread.logits, predictions.logits[chosen])


def test_target_queries_are_class_content_at_the_objects_boxes():
    model, targets = tiny(num_classes=4), make_targets((2, 1))
    embedding = TargetEmbedding(model)
    queries, content = embedding(targets), embedding.content.weight
    assert queries.padding.tolist() == [[False, False], [False, True]]
    torch.testing.assert_close(queries.content[0], content[targets[0].labels])
    torch.testing.assert_close(queries.reference[1, 0], targets[1].boxes[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_zero_if_student_and_teacher_are_equal(variant):
    model = add_noise(tiny(variant)).eval()
    batch = random_batch()
    targets = model.targets(batch)
    with torch.no_grad():
        memory = model.encode(model.preprocess(batch))
        objects = model.decode(memory, model.propose(memory))
        decoded = model.decode(memory, TargetEmbedding(model)(targets))
    outputs = Outputs(memory, objects, {"targets": decoded})
    for loss in (TargetAwareLogitLoss(**WEIGHTS), MatchedLogitLoss(HungarianMatcher(2, 5, 2), **WEIGHTS)):
        for name, value in loss(outputs, outputs, targets).items():
            assert value.item() == pytest.approx(0, abs=1e-5), name


def test_matched_queries_are_those_of_the_same_objects():
    targets = make_targets((2, 1))
    predictions = make_predictions(layers=1)
    matcher = HungarianMatcher(2, 5, 2)
    gathered, matched = MatchedLogitLoss(matcher, **WEIGHTS).gather(predictions, targets)
    assert matched[0].tolist() == [[True, True], [True, False]]
    for b, q, t in zip(*matcher(predictions, targets)[0], strict=True):
        torch.testing.assert_close(gathered.boxes[0, b, t], predictions.boxes[0, b, q])


def test_surplus_objects_have_no_match():
    matcher, targets = HungarianMatcher(2, 5, 2), make_targets((3,))
    predictions = make_predictions(1, 1, 2, 4)
    _, matched = MatchedLogitLoss(matcher, **WEIGHTS).gather(predictions, targets)
    assert matched.sum() == 2
    assert matched[0, 0, matcher(predictions, targets)[0][2]].all()


def test_weights_are_the_teachers_confidence():
    """A query of which the teacher is unsure has a smaller gradient."""
    teacher, student = make_predictions(1, 1, 2, 1), make_predictions(1, 1, 2, 1)
    teacher.logits[0, 0, :, 0] = torch.tensor([math.log(3), -math.log(3)])
    boxes = student.boxes.clone().requires_grad_()
    losses = TargetAwareLogitLoss(**WEIGHTS)(
        outputs_of(teacher), outputs_of(Predictions(student.logits, boxes)), make_targets((2,))
    )
    losses["bbox"].backward()
    pull = boxes.grad[0, 0].abs().sum(-1)
    assert (pull[0] / pull[1]).item() == pytest.approx(3, rel=1e-4)
