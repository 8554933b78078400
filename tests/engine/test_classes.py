"""Class names of datasets and models are compared by number."""

import logging

import pytest

from clockdistill.engine.datasets import check_classes
from clockdistill.errors import UserError
from clockdistill.modeling.weights import metadata_of


@pytest.mark.parametrize(
    "classes",
    [
        {},
        {"a": ["car", "van"], "b": ["car", "van"], "c": None},
        {"a": ["car", "car"], "b": ["car", "car"]},
        {"a": ["car", "van"], "b": ["Car", "Van"]},
    ],
    ids=str,
)
def test_equal_renamed_and_unknown_classes_pass(classes):
    check_classes(classes)


def test_other_names_are_warned_of(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("clockdistill"), "propagate", True)
    check_classes({"a": ["cat", "dog"], "b": ["cat", "person"]})
    assert "a and b differ in the names of 1 of their classes: number 1 is called dog and person" in caplog.text


@pytest.mark.parametrize(
    "classes",
    [
        {"a": ["car", "van"], "b": ["car", "van"], "c": ["van", "car"]},
        {"a": None, "b": ["car", "van", "bus"], "c": ["car", "bus", "tram"]},
        {"a": ["car", "car", "van"], "b": ["car", "van", "car"]},
    ],
    ids=str,
)
def test_a_class_with_two_numbers_is_refused(classes):
    with pytest.raises(UserError, match=r"class \d of [ab] is \w+, which is class \d of [bc]: give all data the same"):
        check_classes(classes)


@pytest.mark.parametrize("contents", [{}, {"metadata": None}, {"metadata": ["car"]}], ids=str)
def test_metadata_of_other_projects_are_ignored(contents):
    assert metadata_of(contents) == {}
