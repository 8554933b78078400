import logging
import os
import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image

from clockdistill.data import KITTI_CLASSES, register_kitti
from clockdistill.data.builtin import register_all
from clockdistill.data.kitti import parse_lines
from clockdistill.errors import UserError
from clockdistill.evaluation.kitti import KITTIEvaluator
from helpers.kitti_scenes import LEVELS, brute_force, random_scene
from helpers.models import CONFIGS


def make_kitti(root, scenes, size=(1242, 375)):
    for folder in ("image_2", "label_2"):
        (root / "training" / folder).mkdir(parents=True)
    (root / "ImageSets").mkdir()
    for number, (labels, _) in enumerate(scenes):
        Image.new("RGB", size).save(root / "training" / "image_2" / f"{number:06d}.png")
        text = "".join(
            f"{kind} {truncated} {occluded} -10 {' '.join(map(str, box))} -1 -1 -1 -1000 -1000 -1000 -10\n"
            for kind, truncated, occluded, *box in labels
        )
        (root / "training" / "label_2" / f"{number:06d}.txt").write_text(text)
    (root / "ImageSets" / "val.txt").write_text("\n".join(f"{i:06d}" for i in range(len(scenes))))


@pytest.fixture
def kitti(tmp_path, monkeypatch):
    """A random scene, registered as `kitti_val`, and a folder for output."""
    rng = random.Random(3)
    scene = [random_scene(rng, images=1, noise=0.1)[0] for _ in range(31)]
    make_kitti(tmp_path / "kitti", scene)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    # COCOEvaluator caches the path of the first labels it gets in the catalog
    register_all()
    yield scene, str(tmp_path / "output")
    register_all()


def batch(scene, numbers, classes=KITTI_CLASSES):
    """Inputs and a detector's outputs of these images."""
    outputs = []
    for _, detections in (scene[i] for i in numbers):
        instances = Instances((375, 1242))
        instances.pred_boxes = Boxes(torch.tensor([row[1:5] for row in detections]).reshape(-1, 4).float())
        instances.scores = torch.tensor([row[5] for row in detections]).float()
        instances.pred_classes = torch.tensor([classes.index(row[0]) for row in detections], dtype=torch.long)
        outputs.append(dict(instances=instances))
    return [dict(image_id=i) for i in numbers], outputs


def run(evaluator, scene, numbers):
    evaluator.reset()
    evaluator.process(*batch(scene, numbers))
    return evaluator.evaluate()


def written(scene, output_dir, folder="kitti_val_results"):
    """The scene with the detections read from the result files."""
    result = []
    for number, (labels, _) in enumerate(scene):
        with open(os.path.join(output_dir, folder, f"{number:06d}.txt"), encoding="utf-8") as file:
            rows = [line.split() for line in file]
        assert all(len(row) == 16 for row in rows)
        result.append((labels, [(row[0], *map(float, row[4:8]), float(row[15])) for row in rows]))
    return result


def test_the_evaluator_evaluates_what_it_writes(kitti, caplog):
    scene, output_dir = kitti
    with caplog.at_level(logging.INFO):
        results = run(KITTIEvaluator("kitti_val", output_dir), scene, range(len(scene)))["kitti"]
    assert results == pytest.approx(brute_force(written(scene, output_dir)), abs=1e-6, nan_ok=True)
    assert sum(value > 1 for value in results.values()) > 5
    assert all(type(value) is float for value in results.values())
    (table,) = [record.message for record in caplog.records if "KITTI's AP" in record.message]
    row = next(line for line in table.splitlines() if line.startswith("| Car"))
    levels = [results[f"Car/{level}/AP{points}"] for points in (40, 11) for level in LEVELS]
    assert [float(cell) for cell in row.split("|")[2:-1]] == pytest.approx(levels, abs=0.005, nan_ok=True)


def test_result_files_hold_the_detections(kitti):
    scene, output_dir = kitti
    scene[0] = ([], [("Car", 387.63, 181.54, 1223.81, 203.12, 0.9), ("Tram", 0.1, 1 / 3, 1000.01, 374.0, 3e-5)])
    scene[1] = (scene[1][0], [])
    folder = os.path.join(output_dir, "kitti_val_results")
    os.makedirs(folder)
    with open(os.path.join(folder, "999999.txt"), "w", encoding="utf-8") as file:
        file.write("of a run on other frames\n")
    run(KITTIEvaluator("kitti_val", output_dir), scene, range(len(scene) - 1))
    assert sorted(os.listdir(folder)) == [f"{i:06d}.txt" for i in range(len(scene))]
    with open(os.path.join(folder, "000000.txt"), encoding="utf-8") as file:
        assert file.read() == (
            "Car -1 -1 -10 387.63 181.54 1223.81 203.12 -1 -1 -1 -1000 -1000 -1000 -10 0.9\n"
            "Tram -1 -1 -10 0.1 0.33333334 1000.01 374.0 -1 -1 -1 -1000 -1000 -1000 -10 3e-05\n"
        )
    for number in (1, len(scene) - 1):
        assert os.path.getsize(os.path.join(folder, f"{number:06d}.txt")) == 0
    lines, faults = parse_lines(Path(folder, "000000.txt").read_bytes())
    assert [(line.type, line.score) for line in lines] == [("Car", 0.9), ("Tram", 3e-5)]
    assert not faults
    for (_, given), (_, read) in zip(scene[:-1], written(scene, output_dir)[:-1], strict=True):
        assert [row[0] for row in read] == [row[0] for row in given]
        assert torch.equal(*(torch.tensor([row[1:] for row in rows], dtype=torch.float32) for rows in (given, read)))


def test_labels_of_the_metric_do_not_depend_on_the_class_set(kitti):
    """Objects, neighbors and regions appear once and in file order, even if the detector has no neighbor class."""
    scene, output_dir = kitti
    classes = ("Cyclist", "Car")
    register_kitti("kitti_two", "kitti", "val", classes)
    try:
        evaluator = KITTIEvaluator("kitti_two", output_dir)
    finally:
        DatasetCatalog.remove("kitti_two")
        MetadataCatalog.remove("kitti_two")
    for labels, (rows, _) in zip(evaluator.labels, scene, strict=True):
        known = [row for row in rows if row[0] in (*classes, "Van", "DontCare")]
        assert labels.types.tolist() == [row[0] for row in known]
        assert labels.boxes.tolist() == [list(map(float, row[3:])) for row in known]
    scene = [(labels, [d for d in detections if d[0] in classes]) for labels, detections in scene]
    evaluator.reset()
    evaluator.process(*batch(scene, range(len(scene)), classes))
    results = evaluator.evaluate()["kitti"]
    expected = {k: v for k, v in brute_force(written(scene, output_dir, "kitti_two_results")).items() if k[:2] != "Pe"}
    assert results == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_data_set_without_kittis_classes_is_skipped(kitti, caplog):
    _, output_dir = kitti
    register_kitti("kitti_trams", "kitti", "val", ("Tram", "Truck"))
    record = dict(DatasetCatalog.get("kitti_val")[0])
    record["annotations"] = [dict(bbox=[0, 0, 9, 9], bbox_mode=0, category_id=0, iscrowd=0)]
    DatasetCatalog.register("coco_like", lambda: [record])
    MetadataCatalog.get("coco_like").thing_classes = ["Car"]
    try:
        for name in ("kitti_trams", "coco_like"):
            evaluator = KITTIEvaluator(name, output_dir)
            assert f"{name} has no Car, Pedestrian, Cyclist in KITTI's format" in caplog.text
            assert run(evaluator, [([], [])], [0]) == {}
            assert not os.path.exists(output_dir)
    finally:
        for name in ("kitti_trams", "coco_like"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_image_of_another_data_set_is_an_error(kitti):
    scene, output_dir = kitti
    evaluator = KITTIEvaluator("kitti_val", output_dir)
    evaluator.reset()
    _, outputs = batch(scene, [0])
    with pytest.raises(UserError, match=r"kitti_val has no image 999: .*dataloader\.test"):
        evaluator.process([dict(image_id=999)], outputs)


def evaluate_share(rank, shares, scene, folder):
    """Evaluate one process's share of the images."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(shares))
    try:
        results = run(KITTIEvaluator("kitti_val", f"{folder}/output_2"), scene, shares[rank])
        dist.barrier()  # a process that leaves early aborts
    finally:
        dist.destroy_process_group()
    assert ("kitti" in results) == (rank == 0)
    return results


def test_two_processes_give_the_results_of_one(kitti, tmp_path):
    scene, output_dir = kitti
    one = run(KITTIEvaluator("kitti_val", output_dir), scene, range(len(scene)))["kitti"]
    # the second process repeats an image of the first
    shares = [range(0, len(scene), 2), [*range(1, len(scene), 2), 0]]
    assert len(shares[0]) == len(shares[1])
    process = mp.get_context("spawn").Process(target=evaluate_share, args=(1, shares, scene, str(tmp_path)))
    process.start()
    two = evaluate_share(0, shares, scene, str(tmp_path))
    process.join()
    assert process.exitcode == 0
    assert two["kitti"] == pytest.approx(one, abs=0, nan_ok=True)
    assert written(scene, f"{tmp_path}/output_2") == written(scene, output_dir)


@pytest.mark.parametrize("name", ["kitti", "street"])
def test_configs_have_both_metrics(kitti, tmp_path, monkeypatch, name):
    scene, output_dir = kitti
    os.rename(tmp_path / "kitti", tmp_path / {"kitti": "kitti", "street": "street_scenes"}[name])
    cfg = LazyConfig.load(str(CONFIGS / "common" / "data" / f"{name}.py"))
    cfg.train = dict(output_dir=output_dir)
    classes = MetadataCatalog.get(f"{name}_val").thing_classes
    detections = [(labels, [d for d in rows if d[0] in classes]) for labels, rows in scene]
    evaluator = instantiate(cfg.dataloader.evaluator)
    evaluator.reset()
    evaluator.process(*batch(detections, range(len(scene)), classes))
    results = evaluator.evaluate()
    assert list(results) == ["bbox", "kitti"]
    assert results["bbox"]["AP"] > 1
    assert len(results["kitti"]) == 18
    print_csv_format(results)
    with EventStorage() as storage:
        storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        assert storage.latest()["kitti/Car/hard/AP40"] == (results["kitti"]["Car/hard/AP40"], 0)
