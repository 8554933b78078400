"""Render a scene: objects back to front, the bloom of lamps, and the camera's imperfections."""

from functools import partial
from itertools import accumulate, pairwise

import cv2
import numpy as np

from .backdrop import paint_backdrop, tiled_noise
from .camera import NEAR, SUPERSAMPLING, Canvas, fixed_point


def paint_scene(scene, rng):
    """Paint a scene; return the canvas, the objects in painting order, and the halos of lamps."""
    canvas, objects, halos = Canvas(scene.camera), scene.back_to_front(), []
    for object_id, obj in enumerate((obj for obj in objects if obj.kind), 1):
        obj.id = object_id
    paint_backdrop(scene, canvas, rng)
    for obj in objects:
        paint_object(obj, canvas, scene.light, halos)
    return canvas, objects, halos


def paint_object(obj, canvas, light, halos):
    """Paint an object, measure it, and append its lamps to `halos`."""
    canvas.begin(obj.id)
    parts = limb_parts(obj, canvas, light) + solid_parts(obj, canvas, light, halos)
    if len(obj.model.face_counts) != 2:  # two solids are stacked, bottom first
        parts.sort(key=lambda part: -part[0])
    for _, paint in parts:
        paint()
    if obj.id:
        obj.box = canvas.extent
        obj.pixels, obj.inside = measure(canvas, obj.box)


def measure(canvas, box):
    """Return the supersampled pixel count of the canvas's current object and its extent (4,) inside the image."""
    limits = (canvas.camera.width, canvas.camera.height_px) * 2
    # rounding of line widths may exceed the box slightly
    left, top, right, bottom = np.clip(box + (-1, -1, 2, 2), 0, limits).astype(int) * SUPERSAMPLING
    own = (canvas.pixels[top:bottom, left:right, 3] == canvas.object_id).view(np.uint8)
    x, y, width, height = cv2.boundingRect(own) if own.size else (0, 0, 0, 0)
    inside = np.array([left + x, top + y, left + x + width, top + y + height])
    return np.count_nonzero(own), inside / SUPERSAMPLING


def limb_parts(obj, canvas, light):
    """Return the distance of each limb and a function that paints it."""
    model, camera = obj.model, canvas.camera
    if not len(model.ends):
        return []
    ends = obj.to_camera(model.ends)
    middle = ends.mean(1)
    depth = middle[:, 2]
    upright, inclined = np.array([[0.0, -0.25, -0.97], [0.0, -0.5, -0.85]])
    normals = np.where(model.radii[:, None] < 0.6, upright, inclined)
    colors = np.clip(light.shade(model.limb_colors, normals, depth, obj.sunlight), 0, 255).tolist()
    strokes = capsules(camera, ends, model.radii)
    bright = highlights(obj, camera, light, ends, depth)
    distances = np.hypot(middle[:, 0], depth).tolist()

    def paint(i):
        canvas.capsule(*strokes[i], colors[i])
        if i in bright:
            canvas.capsule(*bright[i])

    beyond_near = np.flatnonzero(ends[..., 2].min(1) >= NEAR).tolist()
    return [(distances[i], partial(paint, i)) for i in beyond_near]


def highlights(obj, camera, light, ends, depth):
    """Return the sunlit side of each sufficiently thick limb: its index -> arguments of `Canvas.capsule`."""
    radii = obj.model.radii
    along = ends[:, 1] - ends[:, 0]
    thick = np.flatnonzero((radii * camera.focal > 1.2 * depth) & (np.abs(along).max(1) > 0))
    if not len(thick):
        return {}
    ends, radii = ends[thick], radii[thick] * 0.45
    side = np.cross(along[thick], ends[:, 0])
    side *= (np.sign(side @ light.direction) * radii / (np.linalg.norm(side, axis=1) + 1e-6))[:, None]
    strokes = capsules(camera, ends + side[:, None], radii)
    colors = light.shade(obj.model.limb_colors[thick], light.direction, depth[thick], obj.sunlight)
    near = ends[..., 2] + side[:, None, 2] < NEAR
    return {
        i: (*stroke, color)
        for i, stroke, color, too_near in zip(thick.tolist(), strokes, np.clip(colors, 0, 255).tolist(), near.any(1))
        if not too_near
    }


def capsules(camera, ends, radii):
    """Ends (n, 2, 3) and radii (n,) of limbs -> arguments of `Canvas.capsule` without the color."""
    pixels = camera.project(ends)
    radii = radii * camera.focal / np.maximum(ends[..., 2], NEAR).sum(1) * 2
    return list(zip(pixels.tolist(), fixed_point(pixels).tolist(), radii.tolist()))


def solid_parts(obj, canvas, light, halos):
    """Return the distance of each solid and a function that paints it and appends its lamps to `halos`."""
    model = obj.model
    if not model.layers:
        return []
    points = obj.to_camera(model.points)
    pixels = canvas.camera.project(points)
    fixed = fixed_point(pixels)
    near = points[:, 2].min() < NEAR
    visible, normals, distances, parts = face_geometry(model, points)
    colors = layer_colors(obj, light, normals, distances)

    def paint(faces):
        for i in (i for face in faces if visible[face] for i in model.layers_of[face]):
            layer, span = model.layers[i], slice(*model.starts[i : i + 2])
            shape = layer.polygons.shape[:2]
            polygons = points[span].reshape(*shape, 3)
            if layer.glow and light.dark:
                halos.append((polygons[0].mean(0), layer.glow, layer.color, obj.id))
            if near and polygons[..., 2].min() < NEAR:
                canvas.near_polygons(polygons, colors[i])
            else:
                canvas.polygons(pixels[span], fixed[span].reshape(*shape, 2), colors[i])

    return [(distance, partial(paint, faces)) for distance, faces in parts]


def layer_colors(obj, light, normals, distances):
    """Shade a model's layers, given its faces' normals (F, 3) and distances (F,); return lists."""
    model = obj.model
    albedo = np.array([layer.color for layer in model.layers])
    shining = np.array([layer.glow > 0 and light.dark for layer in model.layers])
    normals, distances = normals[model.face_of], distances[model.face_of]
    shaded, bright = light.shade(albedo, normals, distances, obj.sunlight), light.apply_haze(albedo, distances)
    return np.clip(np.where(shining[:, None], bright, shaded), 0, 255).tolist()


def face_geometry(model, points):
    """Locate the faces of a model with points (n, 3) in camera axes.

    Returns:
        Which faces point toward the camera (F,), their outward normals (F, 3) and distances (F,), and a list with the
        distance and face indices of every solid.
    """
    bounds = np.array(model.starts[: sum(model.face_counts) + 1])
    starts, counts = bounds[:-1], np.diff(bounds)
    centers = np.add.reduceat(points[: bounds[-1]], starts) / counts[:, None]
    normals = np.cross(points[starts + 1] - points[starts], points[starts + 2] - points[starts + 1])
    sizes = np.linalg.norm(normals, axis=1)
    parts = []
    for first, last in pairwise([0, *accumulate(model.face_counts)]):
        middle = points[bounds[first] : bounds[last]].mean(0)
        outward = (normals[first:last] * (centers[first:last] - middle)).sum(1)
        normals[first:last] *= np.sign(outward)[:, None]
        parts.append((np.hypot(middle[0], middle[2]), range(first, last)))
    normals /= np.maximum(sizes, 1e-9)[:, None]
    visible = (sizes >= 1e-9) & ((normals * centers).sum(1) < 0)
    return visible.tolist(), normals, np.maximum(NEAR, np.linalg.norm(centers, axis=1)), parts


def bloom(canvas, halos):
    """Return the light (H, W, 3) of visible lamps scattered in the lens."""
    camera = canvas.camera
    light = np.zeros((camera.height_px, camera.width, 3), np.float32)
    for point, radius, color, object_id in halos:
        if point[2] < NEAR:
            continue
        u, v = camera.project(point)
        column, row = int(u * SUPERSAMPLING), int(v * SUPERSAMPLING)
        rows, columns = canvas.pixels.shape[:2]
        if not (0 <= row < rows and 0 <= column < columns) or canvas.pixels[row, column, 3] != object_id:
            continue
        size = min(14.0, max(1.2, radius * camera.focal / point[2]))
        cv2.circle(light, (round(u * 16), round(v * 16)), round(size * 16), (color * 0.5).tolist(), -1, cv2.LINE_AA, 4)
    scale = camera.width / 320
    return cv2.GaussianBlur(light, (0, 0), 1.2 * scale) * 0.5 + cv2.GaussianBlur(light, (0, 0), 5 * scale) * 0.7


def photograph(canvas, halos, rng):
    """Add blur, exposure, contrast, tint, vignetting and noise; return the picture (H, W, 3), uint8."""
    width, height = canvas.camera.width, canvas.camera.height_px
    picture = cv2.resize(canvas.pixels, (width, height), interpolation=cv2.INTER_AREA)
    picture = cv2.cvtColor(picture, cv2.COLOR_BGRA2BGR).astype(np.float32)
    if halos:
        picture += bloom(canvas, halos)
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    grain = tiled_noise(u * 2 + rng.uniform(0, 512), v * 2 + rng.uniform(0, 512))
    picture *= 1 + rng.uniform(0.01, 0.05) * grain[..., None]
    blur = max(0.0, rng.normal(0.25, 0.3)) * width / 320
    if blur > 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), min(blur, 0.9))
    picture = (picture - 110) * rng.uniform(0.82, 1.12) + 110 + rng.normal(0, 7)
    picture *= rng.normal(1, 0.025, 3)
    radius = np.hypot(u / width - 0.5, (v / height - 0.5) * 0.6)
    picture *= 1 - rng.uniform(0, 0.5) * radius[..., None] ** 2
    level = rng.uniform(1.0, 5.0)
    picture += rng.normal(0, 1, picture.shape) * level * np.sqrt(np.clip(picture, 20, 255) / 128)
    return np.clip(picture, 0, 255).astype(np.uint8)
