import pytest
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from clockdistill.engine import apply_overrides, load_config
from clockdistill.errors import UserError
from helpers.toy import ToyLoader


@pytest.fixture
def cfg():
    cfg = {
        "model": L(ToyLoader)(seed=1),
        "losses": [{"alpha": 0.5}, {"alpha": 1.5}],
        "train": {
            "max_iter": 10,
            "clip_grad": 0.1,
            "output_dir": "out",
            "seed": "${.max_iter}",
            "amp": {"enabled": False},
            "steps": [1, 2],
            "nothing": None,
        },
    }
    return OmegaConf.create(cfg, flags={"allow_objects": True})


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.max_iter=20", "train.max_iter", 20),
        ("train.max_iter=2e3", "train.max_iter", 2000),
        ("train.clip_grad=1", "train.clip_grad", 1.0),
        ("train.clip_grad=null", "train.clip_grad", None),
        ("train.nothing=abc", "train.nothing", "abc"),
        ("train.output_dir=2024", "train.output_dir", "2024"),
        ("train.output_dir=/data/runs/a b", "train.output_dir", "/data/runs/a b"),
        ("train.output_dir='/data/[1]'", "train.output_dir", "/data/[1]"),
        ("train.amp.enabled=true", "train.amp.enabled", True),
        ("train.steps=[3]", "train.steps", [3]),
        ("train.seed=7", "train.seed", 7),
        ("train.max_iter=${train.steps.1}", "train.max_iter", 2),
        ("losses.1.alpha=2", "losses.1.alpha", 2.0),
        ("model.length=3", "model.length", 3),
        ("+train.new.key=3", "train.new.key", 3),
        ("train.amp={enabled: True}", "train.amp.enabled", True),
    ],
)
def test_override(cfg, override, key, value):
    changed = OmegaConf.select(apply_overrides(cfg, [override]), key)
    assert changed == value
    assert type(changed) is type(value) or isinstance(value, list)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.max_iters=20", r"unknown config key train\.max_iters: did you mean train\.max_iter"),
        ("max_iter=20", r"unknown config key max_iter: did you mean train\.max_iter"),
        ("model.lenth=3", r"unknown config key model\.lenth: did you mean model\.length"),
        ("train.max_iter.x=1", r"unknown config key train\.max_iter\.x"),
        ("losses.2.alpha=1", r"unknown config key losses\.2\.alpha"),
        ("zzz=1", r"unknown config key zzz: no key of the config is similar"),
        ("train.max_iter", "as key=value"),
        ("--resume", "comes too late"),
        ("train.output_dir=[", "cannot parse the override"),
        ("~train.max_iter=3", "deleting keys and sweeps are not supported"),
        ("train.max_iter=1,2", "sweeps are not supported"),
        ("train.max_iter=abc", r"train\.max_iter cannot be 'abc': it must be an integer"),
        ("train.max_iter=0.5", r"train\.max_iter cannot be 0\.5: it must be an integer"),
        ("train.max_iter=True", "an integer"),
        ("train.max_iter=inf", "an integer"),
        ("train.clip_grad=abc", "must be a number"),
        ("train.amp.enabled=1", "True or False"),
        ("train.steps=3", "a list"),
        ("train.amp=3", "a group of keys"),
        ("train.output_dir=[1]", "must be text"),
    ],
)
def test_wrong_override(cfg, override, sentence):
    before = OmegaConf.to_yaml(cfg.train)
    with pytest.raises(UserError, match=sentence):
        apply_overrides(cfg, [override])
    assert OmegaConf.to_yaml(cfg.train) == before


def test_missing_config():
    with pytest.raises(UserError, match="--config-file"):
        load_config("")
    with pytest.raises(UserError, match=r"nowhere\.py does not exist"):
        load_config("nowhere.py")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model = dict(\n", r"line 1"),
        ("model = 1\ntrain = missing\n", r"wrong\.py, line 2, does not execute: NameError"),
        ("from .absent import train\n", r"does not execute: ImportError: .*absent\.py does not exist"),
        ("import no_such_package\n", r"line 1, does not execute: ModuleNotFoundError"),
        ("model = dict(a=1)\n", r"has no `dataloader`"),
    ],
)
def test_config_that_is_no_config(tmp_path, text, sentence):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as raised:
        load_config(str(path))
    assert "\n" not in str(raised.value)
    assert "wrong.py" in str(raised.value)


def test_config_of_another_kind(tmp_path):
    path = tmp_path / "wrong.txt"
    path.write_text("model: 1")
    with pytest.raises(UserError, match=r"wrong\.txt"):
        load_config(str(path))
