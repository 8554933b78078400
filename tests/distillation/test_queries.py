"""KD-DETR and DETRDistill against their formulas. On several processes, see test_processes.py."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import LazyConfig, instantiate
from torchvision.ops import box_convert, box_iou, generalized_box_iou, sigmoid_focal_loss

from clockdistill.distillation import (
    DistillationLoss,
    GeneralPointsLoss,
    HungarianLogitLoss,
    QueryPriorLoss,
    SpecificPointsLoss,
    TargetAwareFeatureLoss,
)
from clockdistill.distillation.detrdistill import cross_entropy
from clockdistill.errors import UserError
from clockdistill.modeling import Outputs, Predictions, Target, Targets
from families import CONFIGS, VARIANTS
from helpers.distillation import (
    SHAPES,
    VALID,
    WEIGHTS,
    losses_from_step,
    make_hook,
    make_memory,
    random_targets,
    save_teacher,
)
from helpers.models import add_noise, random_batch, tiny, tiny_config

METHODS = LazyConfig.load(str(CONFIGS / "common/methods.py"))
CLOSE = dict(rtol=1e-4, atol=1e-5)
SIZES = ((64, 96), (48, 96))


def make_losses():
    """The losses of both methods, by name, with few points."""
    losses = {
        name: instantiate(loss) for method in ("kd_detr", "detrdistill") for name, loss in METHODS[method].items()
    }
    losses["general"].num_points = 7
    return losses


def make_predictions(layers=2, images=2, queries=4, classes=3, dtype=torch.float32):
    boxes = torch.rand(layers, images, queries, 4, dtype=dtype) * 0.4 + 0.2
    return Predictions(torch.randn(layers, images, queries, classes, dtype=dtype), boxes)


def make_targets(counts=(2, 1)):
    return Targets([Target(torch.randint(3, (n,)), torch.rand(n, 4) * 0.4 + 0.2) for n in counts])


def giou_distance(a, b):
    a, b = (box_convert(x[None], "cxcywh", "xyxy") for x in (a, b))
    return 1 - generalized_box_iou(a, b).squeeze()


def divergence(teacher, student):
    p, q = teacher.sigmoid(), student.sigmoid()
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def layer_predictions(predictions, layer, image):
    return list(zip(predictions.logits[layer, image], predictions.boxes[layer, image], strict=True))


def run(loss, teacher, student, targets):
    """The terms of a loss for the given predictions, as object queries and as the loss's own group."""
    group = {GeneralPointsLoss: "points", SpecificPointsLoss: "points", QueryPriorLoss: "teacher"}.get(type(loss), "")
    return loss(*(Outputs(None, p, {group: p}) for p in (teacher, student)), targets)


@pytest.mark.parametrize("loss", [GeneralPointsLoss(3, **WEIGHTS), SpecificPointsLoss(**WEIGHTS)])
def test_kd_detr_weights_points_by_the_teachers_highest_score(loss):
    torch.manual_seed(0)
    teacher, student = make_predictions(layers=3), make_predictions()
    expected = dict.fromkeys(("class", "bbox", "giou"), 0.0)
    # the student's two layers learn from the teacher's second and third
    for layer in range(2):
        pairs = [
            pair
            for image in range(2)
            for pair in zip(
                layer_predictions(teacher, layer + 1, image), layer_predictions(student, layer, image), strict=True
            )
        ]
        total = sum(t.sigmoid().max() for (t, _), _ in pairs)
        for (t, t_box), (s, s_box) in pairs:
            weight = t.sigmoid().max() / total
            expected["class"] += weight * divergence(t, s).sum()
            expected["bbox"] += 5 * weight * (t_box - s_box).abs().sum()
            expected["giou"] += 2 * weight * giou_distance(t_box, s_box)
    torch.testing.assert_close(run(loss, teacher, student, make_targets()), expected, **CLOSE)


def positives_by_loop(model, predictions, targets, layer):
    """The set of (image, query) that the matcher assigns to objects, and their objects."""
    image, query, target = (x.tolist() for x in model.criterion.matcher(predictions, targets)[layer])
    return {(b, q): t for b, q, t in zip(image, query, target, strict=True)}


def build(loss):
    model = tiny()
    loss.build(model, model)
    return loss, model


@pytest.mark.parametrize("queries", [4, 3])
def test_hungarian_logits_equal_the_best_of_all_assignments(queries):
    """With fewer queries than the teacher, the student leaves out the predictions that cost most."""
    torch.manual_seed(1)
    loss, model = build(HungarianLogitLoss(**WEIGHTS))
    teacher, student, targets = make_predictions(), make_predictions(queries=queries), make_targets()
    names = ("positive_class", "positive_bbox", "positive_giou", "negative_bbox", "negative_giou")
    expected = dict.fromkeys(names, 0.0)
    for layer in range(2):
        positive = positives_by_loop(model, teacher, targets, layer)
        for image in range(2):
            t, s = layer_predictions(teacher, layer, image), layer_predictions(student, layer, image)

            def cost(i, j, with_class, t=t, s=s):
                box = 5 * (t[i][1] - s[j][1]).abs().sum() + 2 * giou_distance(t[i][1], s[j][1])
                return box + (divergence(t[i][0], s[j][0]).sum() if with_class else 0)

            mine = [i for i in range(4) if (image, i) in positive]
            others = [i for i in range(4) if i not in mine]
            best = min(
                itertools.permutations(range(queries), len(mine)),
                key=lambda js: sum(cost(i, j, True) for i, j in zip(mine, js, strict=True)),
            )
            for i, j in zip(mine, best, strict=True):
                expected["positive_class"] += divergence(t[i][0], s[j][0]).sum() / len(positive)
                expected["positive_bbox"] += 5 * (t[i][1] - s[j][1]).abs().sum() / len(positive)
                expected["positive_giou"] += 2 * giou_distance(t[i][1], s[j][1]) / len(positive)
            free = [j for j in range(queries) if j not in best]
            chosen = min(
                itertools.permutations(others, len(free)),
                # 1 - GIoU and -GIoU differ by a constant, as the number of pairs is given
                key=lambda order: sum(cost(i, j, False) for i, j in zip(order, free, strict=True)),
            )
            for i, j in zip(chosen, free, strict=True):
                count = 8 - len(positive)
                expected["negative_bbox"] += 5 * (t[i][1] - s[j][1]).abs().sum() / count
                expected["negative_giou"] += 2 * giou_distance(t[i][1], s[j][1]) / count
    torch.testing.assert_close(run(loss, teacher, student, targets), expected, **CLOSE)


def test_cross_entropy_of_all_pairs():
    logits, targets = torch.randn(3, 5), torch.randn(2, 5)
    expected = [[F.binary_cross_entropy_with_logits(x, t.sigmoid(), reduction="sum") for t in targets] for x in logits]
    torch.testing.assert_close(cross_entropy(logits, targets), torch.tensor(expected))


def feature_outputs(dtype=torch.float32, shapes=SHAPES, valid=VALID):
    """Teacher and student, 8 and 3 channels wide, for the targets of `random_targets`."""
    torch.manual_seed(2)
    teacher, student = (make_memory(shapes, valid, width, dtype=dtype) for width in (8, 3))
    predictions = make_predictions(images=3, queries=6, dtype=dtype)
    return Outputs(teacher, predictions, {}, torch.randn(2, 3, 6, 8, dtype=dtype)), Outputs(student)


def masks_by_loop(loss, outputs, targets):
    """Yield level, image, and the mask (h, w) of each of the teacher's layers, without padding."""
    predictions = outputs.object_predictions
    levels = zip(SHAPES, outputs.memory.split(loss.maps(outputs)), strict=True)
    for (level, (shape, maps)), image, layer in itertools.product(enumerate(levels), range(3), range(2)):
        h, w = VALID[image][level]
        cells = maps[image].unflatten(0, shape)[:h, :w]
        scores = predictions.logits[layer, image].sigmoid().amax(-1)
        mask = torch.zeros(h, w)
        for query in scores.argsort(descending=True)[: loss.num_queries].tolist():
            quality = scores[query]
            if len(targets[image].boxes):
                boxes = (predictions.boxes[layer, image, query][None], targets[image].boxes)
                quality = quality * box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in boxes)).max()
            mask += quality * F.cosine_similarity(cells, outputs.object_content[layer, image, query], dim=-1)
        mask = mask.clamp(min=0.01)
        yield level, image, mask / mask.max()


def test_feature_loss_equals_its_formula_on_images_without_padding():
    loss, targets = TargetAwareFeatureLoss(0.1, num_queries=4, feature="memory"), random_targets(3)
    loss.projection = torch.nn.Linear(3, 8)
    teacher, student = feature_outputs()
    expected = 0.0
    for level, image, mask in masks_by_loop(loss, teacher, targets):
        h, w = VALID[image][level]
        t, s = (
            maps.split([a * b for a, b in SHAPES], 1)[level][image].unflatten(0, SHAPES[level])[:h, :w]
            for maps in (teacher.memory.tokens, loss.projection(student.memory.tokens))
        )
        values = 8 * sum(math.prod(sizes[level]) for sizes in VALID)
        expected += 0.1 * (mask[..., None] * (t - s)).square().sum() / values
    torch.testing.assert_close(loss(teacher, student, targets)["mask"], expected, **CLOSE)


def test_prior_loss_is_the_detection_loss_under_the_teachers_assignment():
    torch.manual_seed(3)
    loss, model = build(QueryPriorLoss(0.5))
    teacher, student, targets = make_predictions(layers=3), make_predictions(), make_targets()
    criterion, expected = model.criterion, dict.fromkeys(("class", "bbox", "giou"), 0.0)
    for layer in range(2):
        objects = positives_by_loop(model, teacher, targets, layer + 1)
        for image in range(2):
            for query, (logits, box) in enumerate(layer_predictions(student, layer, image)):
                one_hot, target = torch.zeros(3), objects.get((image, query))
                if target is not None:
                    one_hot[targets[image].labels[target]] = 1
                    true = targets[image].boxes[target]
                    expected["bbox"] += 0.5 * criterion.l1_weight * (box - true).abs().sum() / 3
                    expected["giou"] += 0.5 * criterion.giou_weight * giou_distance(box, true) / 3
                focal = sigmoid_focal_loss(logits, one_hot, criterion.alpha, criterion.gamma).sum()
                expected["class"] += 0.5 * criterion.class_weight * focal / 3
    torch.testing.assert_close(run(loss, teacher, student, targets), expected, **CLOSE)


@pytest.mark.parametrize("name", ["general", "specific", "hungarian", "prior"])
def test_gradcheck_of_predictions(name):
    torch.manual_seed(4)
    loss, _ = build(make_losses()[name])
    teacher, targets = make_predictions(dtype=torch.float64), make_targets()
    targets.boxes = targets.boxes.double()
    student = make_predictions(dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *predictions: sum(run(loss, teacher, Predictions(*predictions), targets).values()),
        [x.requires_grad_() for x in student],
        fast_mode=True,
    )


def test_gradcheck_of_features():
    loss = TargetAwareFeatureLoss(1.0, num_queries=4).double()
    loss.projection = torch.nn.Linear(3, 8).double()
    teacher, student = feature_outputs(torch.float64, SHAPES[2:], [image[2:] for image in VALID])
    inputs = [student.memory.features.requires_grad_(), *loss.parameters()]
    assert torch.autograd.gradcheck(
        lambda *_: loss(teacher, student, random_targets(3))["mask"], inputs, fast_mode=True
    )


def hook_terms(hook, student, **kwargs):
    """The distillation terms of a step."""
    torch.manual_seed(0)
    names = tuple(f"loss_{name}_" for name in hook.losses)
    losses = hook.compute_losses(student, random_batch(**kwargs))
    return {name: value for name, value in losses.items() if name.startswith(names)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_terms_are_zero_if_student_and_teacher_are_equal(tmp_path, variant):
    """Except for the student's detection loss. With an image of another size, objects, and none."""
    teacher = save_teacher(tmp_path, variant)
    student = instantiate(tiny_config(variant))
    student.load_state_dict(torch.load(teacher["checkpoint"], weights_only=True)["model"])
    student.train().backbone.eval()
    terms = hook_terms(make_hook(student, teacher, make_losses()), student, sizes=SIZES, counts=(3, 0))
    prior = {name: terms.pop(f"loss_prior_{name}") for name in ("class", "bbox", "giou")}
    assert all(value > 0 for value in prior.values())
    assert len(terms) == 12
    for name, value in terms.items():
        assert value.item() == pytest.approx(0, abs=1e-4), name


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("dino", "dino"),
        ("dab_detr.patterns", "deformable_detr"),
        ("deformable_detr", "dino"),
        ("deformable_detr.two_stage", "dab_detr.dc5"),
    ],
)
def test_gradients_reach_the_student_and_the_adapter(tmp_path, teacher, student):
    """Of any family, with other widths, depths and numbers of queries."""
    student = tiny(student)
    hook = make_hook(
        student,
        save_teacher(tmp_path, teacher, embed_dim=64, decoder_layers=3),
        make_losses(),
        level_pairing="order",
    )
    add_noise(hook.modules)
    terms = hook_terms(hook, student, sizes=SIZES, counts=(3, 0))
    assert all(value.isfinite() and value > 0 for value in terms.values())
    sum(terms.values()).backward()
    assert [name for name, p in hook.modules.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.decoder.parameters())


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_random_queries_are_like_object_queries_at_other_places(variant):
    model, batch = add_noise(tiny(variant)).eval(), random_batch()
    memory = model.encode(model.preprocess(batch))
    objects, points = model.propose(memory), model.random_queries(memory, 50)
    assert points.content.shape == (2, 50, model.embed_dim)
    assert points.reference.shape == (2, 50, 4)
    assert (points.position is None) == (objects.position is None)
    assert points.reference.min() >= 0
    assert points.reference.max() <= 1
    assert not torch.equal(points.reference[0], points.reference[1])
    if objects.position is None:
        assert points.reference.std().item() == pytest.approx(1 / math.sqrt(12), rel=0.15)
    assert points.content.std().item() == pytest.approx(objects.content.std().item(), rel=0.5)
    assert all(x.isfinite().all() for x in model.decode(memory, points))


def test_points_depend_on_the_seed_and_the_step_only(tmp_path):
    """So that a resumed training equals one that was not interrupted."""
    teacher = save_teacher(tmp_path)
    through, resumed = (
        losses_from_step(first, teacher, {"general": GeneralPointsLoss(7, **WEIGHTS)}, "loss_general_bbox")
        for first in (0, 1)
    )
    assert through[1:] == resumed
    assert through[0] != through[1]


class Ask(DistillationLoss):
    """Makes groups of queries, and keeps its outputs."""

    def __init__(self, groups, requires_objects):
        super().__init__()
        self.groups, self.requires_objects = groups, requires_objects

    def queries(self, teacher, memory, objects, targets):
        return {name: objects if name == "objects" else teacher.random_queries(memory, 3) for name in self.groups}

    def forward(self, teacher, student, targets):
        self.given = teacher, student
        return {}


def test_object_queries_must_be_required(tmp_path):
    hook = make_hook(tiny(), save_teacher(tmp_path), {"mine": Ask(["objects"], False)})
    with pytest.raises(UserError, match=r"distillation\.losses\.mine returns object queries .* set requires_objects"):
        hook.compute_losses(tiny(), random_batch())


def test_a_loss_gets_the_predictions_for_its_own_queries(tmp_path, monkeypatch):
    losses = {"a": Ask(["x", "y"], False), "b": Ask(["x", "objects"], True), "c": Ask([], False)}
    hook, sizes = make_hook(tiny(), save_teacher(tmp_path), losses), []
    decode = hook.teacher.decode
    monkeypatch.setattr(hook.teacher, "decode", lambda *args: sizes.append(len(args[1])) or decode(*args))
    hook.compute_losses(tiny(), random_batch())
    # one pass for three groups and the object queries, which are a group too
    assert sizes == [3 * 3 + 20]
    for model in range(2):
        a, b, c = (losses[name].given[model] for name in "abc")
        assert [list(outputs.extra_predictions) for outputs in (a, b, c)] == [["x", "y"], ["x", "objects"], []]
        assert not torch.equal(a.extra_predictions["x"].boxes, b.extra_predictions["x"].boxes)
    objects = losses["b"].given[0]
    assert objects.extra_predictions["objects"] is objects.object_predictions
    assert objects.object_content.shape == (2, 2, 20, 32)
    assert losses["a"].given[0].object_content is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_teachers_content_is_what_its_heads_read(tmp_path, variant):
    hook = make_hook(tiny(variant), save_teacher(tmp_path, variant), {"ask": Ask(["x"], True)})
    teacher, batch = hook.teacher, random_batch()
    _, outputs = hook.forward_teacher(batch, teacher.targets(batch))
    head = getattr(teacher, "class_head", None) or teacher.class_heads[1]
    norm = getattr(teacher.decoder, "norm", torch.nn.Identity())
    torch.testing.assert_close(head(norm(outputs.object_content[1])), outputs.object_predictions.logits[1], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_near_full_precision(dtype):
    values = []
    for enabled in (False, True):
        torch.manual_seed(5)
        teacher, student = (
            Predictions(p.logits.to(dtype if enabled else torch.float32), p.boxes)
            for p in (make_predictions(), make_predictions())
        )
        targets = make_targets()
        terms = {}
        for name in ("specific", "hungarian", "prior"):
            loss, _ = build(make_losses()[name])
            terms |= {f"{name}_{term}": value for term, value in run(loss, teacher, student, targets).items()}
        teacher, other = feature_outputs()
        for memory in (teacher.memory, other.memory):
            # the squares of these overflow in float16
            memory.features = (memory.features * 100).to(dtype if enabled else torch.float32)
        loss = TargetAwareFeatureLoss(1.0, 4)
        loss.projection = torch.nn.Linear(3, 8)
        with torch.autocast("cpu", dtype, enabled=enabled):
            terms |= loss(teacher, other, random_targets(3))
        values.append(terms)
    assert all(value.dtype == torch.float32 for value in values[1].values())
    for name, value in values[0].items():
        assert values[1][name].item() == pytest.approx(value.item(), rel=0.05, abs=1e-4), name


def test_masks_and_matching_do_not_depend_on_autocast():
    teacher, _ = feature_outputs()
    feature, hungarian = TargetAwareFeatureLoss(1.0, 4), HungarianLogitLoss(**WEIGHTS)
    inputs = [x[0] for predictions in (make_predictions(), make_predictions()) for x in predictions]
    masks, costs = feature.masks(teacher, random_targets(3)), hungarian.costs(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(feature.masks(teacher, random_targets(3)), masks)
        assert torch.equal(hungarian.costs(*inputs), costs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GeneralPointsLoss(0, **WEIGHTS),
        lambda: HungarianLogitLoss(-1, 1, 1),
        lambda: TargetAwareFeatureLoss(1, num_queries=0),
        lambda: QueryPriorLoss(-1),
    ],
)
def test_wrong_constants_are_refused(make):
    with pytest.raises(UserError):
        make()
