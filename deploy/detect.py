#!/usr/bin/env python
"""Run an exported detector on images, videos and cameras. Copy this file and the model to where they are needed.

It needs NumPy, OpenCV, and ONNX Runtime for models in .onnx or OpenVINO for models in .xml. The output folder gets a
PNG per image and an MP4 per video or camera with the detections drawn, and predictions.jsonl with one line per image or
frame; boxes are (x, y, width, height) in pixels. Ctrl-C ends a camera.

    detect.py --model student.onnx --input photo.jpg photos/ drive.mp4 0 --output detections
"""

import argparse
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np

IMAGES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
COLORS = ((64, 64, 255), (64, 200, 64), (255, 128, 64), (64, 200, 255), (255, 64, 255), (255, 255, 64))


def open_model(path):
    """Return a function from images and sizes to boxes, scores and labels, and the metadata."""
    if not path.is_file() or path.suffix not in (".onnx", ".xml"):
        sys.exit(f"error: {path} is not an exported model: give a file that export.py has written, .onnx or .xml")
    try:
        if path.suffix == ".onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
            metadata = session.get_modelmeta().custom_metadata_map
            return lambda images, sizes: session.run(None, {"images": images, "sizes": sizes}), metadata
        import openvino

        model = openvino.Core().read_model(path)
        info = model.get_rt_info(["model_info"]).astype(dict) if model.has_rt_info(["model_info"]) else {}
        # without the hint, some processors would use bfloat16
        compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        metadata = {name: getattr(value, "value", value) for name, value in info.items()}
        return lambda images, sizes: list(compiled([images, sizes]).values()), metadata
    except ImportError as error:
        sys.exit(f"error: {path} needs {error.name}: run `pip install {error.name}`")
    except Exception as error:
        sys.exit(f"error: {path} cannot be opened ({str(error).strip().splitlines()[0]}): copy it again")


def resize(image, *sides):
    """Resize (h, w, 3) uint8 exactly as Pillow does: bilinear with antialiasing, in fixed point, the width first."""
    for axis in (1, 0):
        image, size = image.swapaxes(0, axis), sides[axis]
        if (length := len(image)) != size:
            step, cells = length / size, np.arange(length)
            centers = (np.arange(size) + 0.5)[:, None] * step
            low, high = (np.floor(np.maximum(centers + sign * max(step, 1) + 0.5, 0)) for sign in (-1, 1))
            weights = np.maximum(1 - abs(cells + 0.5 - centers) / max(step, 1), 0) * ((cells >= low) & (cells < high))
            weights = np.floor(weights / weights.sum(1, keepdims=True) * 2**22 + 0.5)
            sums = weights @ image.reshape(length, -1).astype(np.float64)
            image = np.floor((sums + 2**21) / 2**22).clip(0, 255).astype(np.uint8).reshape(size, *image.shape[1:])
        image = image.swapaxes(0, axis)
    return image


def detect(run, metadata, image, threshold):
    """Return boxes (n, 4) as (x1, y1, x2, y2) in pixels of a BGR image, scores and labels."""
    (height, width), inputs = image.shape[:2], image[:, :, ::-1]
    if rule := metadata["resize"]:  # Detectron2's ResizeShortestEdge
        sides = np.array([height, width]) * (rule["short_edge_length"] / min(height, width))
        inputs = resize(inputs, *(sides * min(1, rule["max_size"] / sides.max()) + 0.5).astype(int).tolist())
    size = metadata["size"] or inputs.shape[:2]
    scale = min(size[0] / inputs.shape[0], size[1] / inputs.shape[1])
    if scale < 1:  # the model's size is fixed, and the image is larger
        inputs = resize(inputs, *(max(1, int(side * scale)) for side in inputs.shape[:2]))
    batch = np.zeros((1, 3, *size), np.uint8)
    batch[0, :, : inputs.shape[0], : inputs.shape[1]] = inputs.transpose(2, 0, 1)
    boxes, scores, labels = (x[0] for x in run(batch, np.array([inputs.shape[:2]], np.int64)))
    boxes = boxes * np.float32([width / inputs.shape[1], height / inputs.shape[0]] * 2)
    keep = (scores >= threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    return boxes[keep], scores[keep], labels[keep]


def read_images(files):
    """Yield the name of each input, the number of the frame (None in images), the frame rate, and the BGR image."""
    for file in files:
        frame, is_camera = None, str(file).isdigit()
        if file.suffix.lower() in IMAGES and (image := cv2.imread(str(file))) is not None:
            yield file.name, None, 0, image
            continue
        video = cv2.VideoCapture(int(str(file)) if is_camera else str(file))
        while (image := video.read()[1]) is not None:
            frame = 0 if frame is None else frame + 1
            yield f"camera{file}" if is_camera else file.name, frame, video.get(cv2.CAP_PROP_FPS) or 25.0, image
        if frame is None:
            sys.exit(f"error: {file} does not exist, or is no image, video or camera index: give another input")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="file that export.py has written, .onnx or .xml")
    parser.add_argument("--input", required=True, nargs="+", help="images, folders, videos or numbers of cameras")
    parser.add_argument("--output", required=True, help="folder for pictures, videos and predictions.jsonl")
    parser.add_argument("--threshold", type=float, default=0.3, help="minimum score (default: 0.3)")
    args = parser.parse_args()
    run, texts = open_model(Path(args.model))
    try:
        metadata = {key: json.loads(texts[key]) for key in ("class_names", "resize", "size")}
    except (KeyError, ValueError, TypeError):
        sys.exit(f"error: {args.model} has no metadata with class names and sizes: write it with export.py")
    names, output, seconds, writer = metadata["class_names"], Path(args.output), [], cv2.VideoWriter()
    files, sources = [], {}
    for path in map(Path, args.input):
        files += sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGES) if path.is_dir() else [path]
    for file in (files := list(dict.fromkeys(files))):
        stem = f"camera{file}" if str(file).isdigit() else file.stem
        other = sources.setdefault((stem, file.suffix.lower() in IMAGES), file)
        if other != file or (file.is_file() and output.resolve() in (file.parent.resolve(), file.resolve().parent)):
            sys.exit(f"error: the result of {other} would replace {file} or its result: change --output")
    output.mkdir(parents=True, exist_ok=True)
    lines = (output / "predictions.jsonl").open("w", encoding="utf-8", buffering=1)
    try:
        for name, frame, rate, image in read_images(files):
            start = time.perf_counter()
            boxes, scores, labels = detect(run, metadata, image, args.threshold)
            seconds.append(time.perf_counter() - start)
            instances = [
                dict(category_id=label, category_name=names[label], bbox=[x1, y1, x2 - x1, y2 - y1], score=score)
                for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist())
            ]
            source = dict(file_name=name) if frame is None else dict(file_name=name, frame=frame)
            print(json.dumps(source | dict(instances=instances)), file=lines)
            for (x1, y1, x2, y2), score, label in zip(boxes.round().astype(int).tolist(), scores, labels):
                color, text, corner = COLORS[label % len(COLORS)], f"{names[label]} {score:.0%}", (x1, max(10, y1 - 4))
                cv2.rectangle(image, (x1, y1), (x2, y2), color, 2)
                cv2.putText(image, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.4, color)
            file = str(output / Path(name).stem)
            if frame is None:
                cv2.imwrite(f"{file}.png", image)
                continue
            if frame == 0:
                writer = cv2.VideoWriter(f"{file}.mp4", cv2.VideoWriter_fourcc(*"mp4v"), rate, image.shape[1::-1])
            writer.write(image)
    except KeyboardInterrupt:
        print("interrupted")
    writer.release()
    print(f"{len(seconds)} images, {len(seconds) / max(sum(seconds), 1e-9):.1f} per second: {output}")


if __name__ == "__main__":
    main()
