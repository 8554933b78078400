import pytest

from clockdistill.engine import parse_model_specs
from clockdistill.errors import UserError


def test_name_config_and_checkpoint():
    texts = ["Distilled student=configs/a=b.py:out/c:d=e.pth", "Teacher =c.yaml:t.pth"]
    assert parse_model_specs(texts, "--model") == [
        ("Distilled student", "configs/a=b.py", "out/c:d=e.pth"),
        ("Teacher", "c.yaml", "t.pth"),
    ]


@pytest.mark.parametrize("text", ["", "a", "a=b", "a=:c", "=b:c", "a=b:"])
def test_wrong_syntax_is_an_error(text):
    with pytest.raises(UserError, match=r"cannot parse --model '.*': write NAME=config.py:checkpoint.pth"):
        parse_model_specs([text], "--model")


def test_duplicate_name_is_an_error():
    with pytest.raises(UserError, match="two models of --compare have the name a: rename one"):
        parse_model_specs(["a=b:c", "a=d:e"], "--compare")
