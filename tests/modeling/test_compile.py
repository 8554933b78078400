"""Inference compiled by `torch.compile` equals eager inference, without graph breaks."""

import pytest
import torch

from clockdistill.evaluation.cost import count_flops
from helpers.models import random_batch, tiny


@pytest.fixture
def compiled():
    """A function from a variant to a detector that compiles without graph breaks, and its list of graphs."""

    def compile_detector(variant):
        graphs = []

        def backend(graph, _):
            graphs.append(graph)
            return graph.forward

        model = tiny(variant, decoder_layers=1).eval()
        model.compile(backend=backend, fullgraph=True)
        return model, graphs

    torch.compiler.reset()
    yield compile_detector
    torch.compiler.reset()


@pytest.mark.parametrize("variant", ["dino", "deformable_detr.two_stage", "dab_detr"])
@torch.no_grad()
def test_compiled_inference_is_one_graph_and_equals_eager_inference(variant, compiled):
    model, graphs = compiled(variant)
    batch = random_batch(sizes=[(64, 96), (64, 80)])  # one of them with padding
    actual = model(batch)
    assert len(graphs) == 1
    eager = tiny(variant, decoder_layers=1).eval()
    for ours, expected in zip(actual, eager(batch), strict=True):
        ours, expected = ours["instances"], expected["instances"]
        torch.testing.assert_close(ours.scores, expected.scores)
        torch.testing.assert_close(ours.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert ours.pred_classes.equal(expected.pred_classes)
    model(batch[::-1])
    assert len(graphs) == 1, "the padding of an image is not part of the graph"


def test_operations_of_a_compiled_detector_are_counted(compiled):
    model, graphs = compiled("dab_detr")
    x = random_batch(sizes=[(64, 96)], counts=[1])[0]
    assert count_flops(model, x) == count_flops(tiny("dab_detr", decoder_layers=1).eval(), x)
    assert not graphs


def test_training_is_not_compiled(compiled):
    model, graphs = compiled("dab_detr")
    sum(model.train()(random_batch()).values()).backward()
    assert not graphs
