import pytest

from clockdistill.engine.named_models import parse_models
from clockdistill.errors import UserError


def test_name_config_and_checkpoint():
    texts = ["Distilled student=configs/a=b.py:out/c:d=e.pth", "Teacher =c.yaml:t.pth"]
    assert parse_models(texts, "--model") == [
        ("Distilled student", "configs/a=b.py", "out/c:d=e.pth"),
        ("Teacher", "c.yaml", "t.pth"),
    ]


@pytest.mark.parametrize("text", ["", "a", "a=b", "a=:c", "=b:c", "a=b:"])
def test_other_syntax_is_refused(text):
    with pytest.raises(UserError, match=r"cannot read --model '.*': write NAME=config.py:checkpoint.pth"):
        parse_models([text], "--model")


def test_two_models_of_one_name_are_refused():
    with pytest.raises(UserError, match="two models of --compare are called a"):
        parse_models(["a=b:c", "a=d:e"], "--compare")
