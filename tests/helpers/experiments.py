"""A toy matrix of experiments, and a train_net.py that trains nothing."""

from pathlib import Path

import experiment_matrix

MATRIX = dict(
    name="toy",
    title="Toy",
    data="toy",
    seeds=[0, 1],
    iterations=10,
    methods=dict(clockdistill=[]),
    cells=dict(dino=dict(student="dino/dino_r18_tiny_street.py", distilled="dino/dino_r18_small_to_tiny_street.py")),
)
TEACHER = dict(config="dino/dino_r18_small_street.py", iterations=20, seed=7)
TUNING = dict(cell="dino", seed=100, factors=[0.1, 0.3, 1, 3], iterations=5, overrides=["model.num_queries=30"])

# Finishes at once, or fails or waits if a file says so.
TRAIN_NET = """
import json, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[-1].removeprefix("train.output_dir="))
with open("calls", "a") as file:
    print(out, file=file)
if str(out) in pathlib.Path("failing").read_text().split():
    sys.exit("error: no teacher")
if str(out) in pathlib.Path("waiting").read_text().split() and not (out / "model_0000004.pth").exists():
    def stop(*_):
        (out / "model_0000004.pth").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    (out / "metrics.json").write_text(json.dumps(dict(iteration=4)))
    time.sleep(60)
(out / "model_0000009.pth").touch()
(out / "model_final.pth").touch()
(out / "results.json").write_text(json.dumps(dict(bbox={"AP": 12.5, "AP50": 20.0, "AP-Car": None})))
"""


def runs(matrix=MATRIX, **factors):
    return experiment_matrix.runs_of(matrix, factors)


def with_teacher():
    cell = MATRIX["cells"]["dino"] | dict(teacher=TEACHER)
    return MATRIX | dict(cells=dict(dino=cell))


def calls():
    return Path("calls").read_text().split()
