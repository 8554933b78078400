"""The detector families and their variants, as the configs define them.

A family is a file in configs/common/models. It has a `model`, and may have `variants`: named overrides of that model.
"""

from pathlib import Path

from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

from clockdistill.engine import load_config

CONFIGS = Path(__file__).resolve().parents[1] / "projects/CLoCKDistill/configs"
TRAINING_CONFIGS = sorted(path for path in CONFIGS.rglob("*.py") if "common" not in path.relative_to(CONFIGS).parts)
MODELS = {path.stem: str(path) for path in sorted(CONFIGS.glob("common/models/*.py"))}

# Overrides of the family's model, by `FAMILY` and `FAMILY.VARIANT`.
VARIANTS = {}
for family, path in MODELS.items():
    variants = LazyConfig.load(path).get("variants", {})
    VARIANTS |= {family: {}, **{f"{family}.{name}": overrides for name, overrides in variants.items()}}


def model_config(variant: str) -> DictConfig:
    """Get the model of a variant."""
    return OmegaConf.merge(LazyConfig.load(MODELS[variant.split(".")[0]]).model, VARIANTS[variant])


def coco_config(family: str, backbones: str = "r50") -> Path:
    """Get the path of the config that trains a family on COCO.

    Args:
        backbones: `r50`, `r18`, `r50_to_r18`, `r18_light` or `r50_to_r18_light`.
    """
    return min(CONFIGS.glob(f"{family}/{family}_{backbones}_coco_*.py"))


def training_config(variant: str) -> DictConfig:
    """Get the config that trains a variant, with a ResNet-50, on COCO."""
    cfg = load_config(str(coco_config(variant.split(".")[0])))
    cfg.model = OmegaConf.merge(cfg.model, VARIANTS[variant])
    return cfg
