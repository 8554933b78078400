import json

import pytest

from clockdistill.evaluation.results import comparison_table, write_json


def test_json_is_written_atomically(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_json({"AP": 20.0}, path)
    with pytest.raises(TypeError):
        write_json({"AP": object()}, path)
    assert json.loads(path.read_text()) == {"AP": 20.0}
    assert list(path.parent.iterdir()) == [path]


def test_nan_is_null_in_json(tmp_path):
    write_json({"bbox": {"AP": 20.0, "AP-Tram": float("nan")}}, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == {"bbox": {"AP": 20.0, "AP-Tram": None}}


def test_comparison_table_has_differences_from_the_first():
    cost = dict(image_size=[96, 320], gflops=0.55, ms_per_image_p95=30.0, images_per_second=40.0, peak_memory_mib=12.4)
    results = {
        "student": {
            "bbox": {"AP": 12.84, "AP-Tram": None},
            "kitti": {"Car/easy/AP40": 1.0, "Car/moderate/AP40": 60.0},
            "benchmark": dict(cost, parameters=1_520_000, ms_per_image=22.0),
        },
        "distilled": {
            "bbox": {"AP": 17.36, "AP-Tram": 3.0},
            "kitti": {"Car/easy/AP40": 1.0, "Car/moderate/AP40": 58.5},
            "benchmark": dict(cost, parameters=2_460_000, ms_per_image=21.5),
        },
    }
    lines = comparison_table(results).splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert header == ["", "student", "distilled"]
    assert rows[:5] == [
        ["AP", "12.8", "17.4 (+4.5)"],
        ["AP-Tram", "-", "3.0"],
        ["kitti Car/moderate/AP40", "60.0", "58.5 (-1.5)"],
        ["parameters (M)", "1.52", "2.46 (+0.94)"],
        ["GFLOPs at 96x320", "0.55", "0.55 (+0.00)"],
    ]
    assert ["ms per image, median", "22.0", "21.5 (-0.5)"] in rows
    assert rows[-1] == ["peak memory (MiB)", "12", "12 (+0)"]
