from pathlib import Path

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig

from helpers.toy import ToyDetector, ToyEvaluator, ToyLoader

COMMON = Path(__file__).resolve().parents[2] / "projects/CLoCKDistill/configs/common"

model = L(ToyDetector)(channels=4)
dataloader = dict(
    train=L(ToyLoader)(seed=1),
    test=L(ToyLoader)(seed=2, length=3),
    evaluator=L(ToyEvaluator)(),
)
optimizer = LazyConfig.load(str(COMMON / "optim.py"), "optimizer")
optimizer.lr = 0.01
train = LazyConfig.load(str(COMMON / "train.py"), "train")
train.max_iter = 6
train.eval_period = 0
train.log_period = 1
train.checkpointer.period = 3
lr_multiplier = LazyConfig.load(str(COMMON / "schedule.py"), "step_schedule")(epochs=3, drop=2)
