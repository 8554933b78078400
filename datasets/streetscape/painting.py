"""From a scene to its picture: the things from back to front, the light of lamps, and what a camera makes of it."""

from functools import partial
from itertools import accumulate, pairwise

import cv2
import numpy as np

from .backdrop import paint_backdrop, tiled_noise
from .camera import NEAR, SUPERSAMPLING, Canvas, fixed_point


def paint_scene(scene, rng):
    """Draw a scene: the canvas, the things in the order in which they were painted, and the halos of lamps."""
    canvas, things, halos = Canvas(scene.camera), scene.back_to_front(), []
    for number, thing in enumerate((thing for thing in things if thing.kind), 1):
        thing.number = number
    paint_backdrop(scene, canvas, rng)
    for thing in things:
        paint_thing(thing, canvas, scene.light, halos)
    return canvas, things, halos


def paint_thing(thing, canvas, light, halos):
    """Draw it over what is there; note its extent and the number of its pixels. `halos` grows by its lamps."""
    canvas.begin(thing.number)
    parts = limb_parts(thing, canvas, light) + solid_parts(thing, canvas, light, halos)
    if len(thing.model.face_counts) != 2:  # of two solids one is on top of the other: they keep their places
        parts.sort(key=lambda part: -part[0])
    for _, paint in parts:
        paint()
    if thing.number:
        thing.box = canvas.extent
        thing.pixels, thing.inside = measure(canvas, thing.box)


def measure(canvas, box):
    """Of the canvas's object, whose extent is `box`: how many pixels it has, and their extent in pixels (4,)."""
    limits = (canvas.camera.width, canvas.camera.height_px) * 2
    # the line's width, rounded, may reach a little beyond
    left, top, right, bottom = np.clip(box + (-1, -1, 2, 2), 0, limits).astype(int) * SUPERSAMPLING
    own = (canvas.pixels[top:bottom, left:right, 3] == canvas.number).view(np.uint8)
    x, y, width, height = cv2.boundingRect(own) if own.size else (0, 0, 0, 0)
    inside = np.array([left + x, top + y, left + x + width, top + y + height])
    return np.count_nonzero(own), inside / SUPERSAMPLING


def limb_parts(thing, canvas, light):
    """Of each of a thing's limbs the distance and a function that paints it."""
    model, camera = thing.model, canvas.camera
    if not len(model.ends):
        return []
    ends = thing.to_camera(model.ends)
    middle = ends.mean(1)
    depth = middle[:, 2]
    upright, inclined = np.array([[0.0, -0.25, -0.97], [0.0, -0.5, -0.85]])
    normals = np.where(model.radii[:, None] < 0.6, upright, inclined)
    colours = np.clip(light.shade(model.limb_colours, normals, depth, thing.shadow), 0, 255).tolist()
    strokes = capsules(camera, ends, model.radii)
    bright = gleams(thing, camera, light, ends, depth)
    distances = np.hypot(middle[:, 0], depth).tolist()

    def paint(i):
        canvas.capsule(*strokes[i], colours[i])
        if i in bright:
            canvas.capsule(*bright[i])

    seen = np.flatnonzero(ends[..., 2].min(1) >= NEAR).tolist()
    return [(distances[i], partial(paint, i)) for i in seen]


def gleams(thing, camera, light, ends, depth):
    """The sunny side of each limb that is thick enough for it: its number -> arguments of `Canvas.capsule`."""
    radii = thing.model.radii
    along = ends[:, 1] - ends[:, 0]
    thick = np.flatnonzero((radii * camera.focal > 1.2 * depth) & (np.abs(along).max(1) > 0))
    if not len(thick):
        return {}
    ends, radii = ends[thick], radii[thick] * 0.45
    side = np.cross(along[thick], ends[:, 0])
    side *= (np.sign(side @ light.direction) * radii / (np.linalg.norm(side, axis=1) + 1e-6))[:, None]
    strokes = capsules(camera, ends + side[:, None], radii)
    colours = light.shade(thing.model.limb_colours[thick], light.direction, depth[thick], thing.shadow)
    near = ends[..., 2] + side[:, None, 2] < NEAR
    return {
        i: (*stroke, colour)
        for i, stroke, colour, hidden in zip(thick.tolist(), strokes, np.clip(colours, 0, 255).tolist(), near.any(1))
        if not hidden
    }


def capsules(camera, ends, radii):
    """Ends (n, 2, 3) and radii (n,) of limbs -> a list of what `Canvas.capsule` wants to know but the colour."""
    pixels = camera.project(ends)
    radii = radii * camera.focal / np.maximum(ends[..., 2], NEAR).sum(1) * 2
    return list(zip(pixels.tolist(), fixed_point(pixels).tolist(), radii.tolist()))


def solid_parts(thing, canvas, light, halos):
    """Of each of a thing's solids the distance and a function that paints it; `halos` grows by its lamps."""
    model = thing.model
    if not model.layers:
        return []
    points = thing.to_camera(model.points)
    pixels = canvas.camera.project(points)
    fixed = fixed_point(pixels)
    near = points[:, 2].min() < NEAR
    visible, normals, distances, parts = look_at_faces(model, points)
    colours = layer_colours(thing, light, normals, distances)

    def paint(faces):
        for i in (i for face in faces if visible[face] for i in model.layers_of[face]):
            layer, span = model.layers[i], slice(*model.starts[i : i + 2])
            shape = layer.polygons.shape[:2]
            polygons = points[span].reshape(*shape, 3)
            if layer.glow and light.dark:
                halos.append((polygons[0].mean(0), layer.glow, layer.colour, thing.number))
            if near and polygons[..., 2].min() < NEAR:
                canvas.near_polygons(polygons, colours[i])
            else:
                canvas.polygons(pixels[span], fixed[span].reshape(*shape, 2), colours[i])

    return [(distance, partial(paint, faces)) for distance, faces in parts]


def layer_colours(thing, light, normals, distances):
    """Colours of a model's layers as lists, from the normals (F, 3) and distances (F,) of its faces."""
    model = thing.model
    albedo = np.array([layer.colour for layer in model.layers])
    shining = np.array([layer.glow > 0 and light.dark for layer in model.layers])
    normals, distances = normals[model.face_of], distances[model.face_of]
    shaded, bright = light.shade(albedo, normals, distances, thing.shadow), light.veil(albedo, distances)
    return np.clip(np.where(shining[:, None], bright, shaded), 0, 255).tolist()


def look_at_faces(model, points):
    """Faces of a model whose points are (n, 3), camera axes, as the camera sees them.

    Returns which turn towards it (F,), their outward normals (F, 3) and distances (F,), and for each solid its distance
    and its faces' numbers.
    """
    bounds = np.array(model.starts[: sum(model.face_counts) + 1])
    starts, counts = bounds[:-1], np.diff(bounds)
    centres = np.add.reduceat(points[: bounds[-1]], starts) / counts[:, None]
    normals = np.cross(points[starts + 1] - points[starts], points[starts + 2] - points[starts + 1])
    sizes = np.linalg.norm(normals, axis=1)
    parts = []
    for first, last in pairwise([0, *accumulate(model.face_counts)]):
        middle = points[bounds[first] : bounds[last]].mean(0)
        outwards = (normals[first:last] * (centres[first:last] - middle)).sum(1)
        normals[first:last] *= np.sign(outwards)[:, None]
        parts.append((np.hypot(middle[0], middle[2]), range(first, last)))
    normals /= np.maximum(sizes, 1e-9)[:, None]
    visible = (sizes >= 1e-9) & ((normals * centres).sum(1) < 0)
    return visible.tolist(), normals, np.maximum(NEAR, np.linalg.norm(centres, axis=1)), parts


def spill(canvas, halos):
    """Light (H, W, 3) that lamps spill into the lens, of those that are not hidden."""
    camera = canvas.camera
    light = np.zeros((camera.height_px, camera.width, 3), np.float32)
    for point, radius, colour, number in halos:
        if point[2] < NEAR:
            continue
        u, v = camera.project(point)
        column, row = int(u * SUPERSAMPLING), int(v * SUPERSAMPLING)
        rows, columns = canvas.pixels.shape[:2]
        if not (0 <= row < rows and 0 <= column < columns) or canvas.pixels[row, column, 3] != number:
            continue
        size = min(14.0, max(1.2, radius * camera.focal / point[2]))
        cv2.circle(light, (round(u * 16), round(v * 16)), round(size * 16), (colour * 0.5).tolist(), -1, cv2.LINE_AA, 4)
    scale = camera.width / 320
    return cv2.GaussianBlur(light, (0, 0), 1.2 * scale) * 0.5 + cv2.GaussianBlur(light, (0, 0), 5 * scale) * 0.7


def photograph(canvas, halos, rng):
    """What a camera makes of it: blur, exposure, contrast, tint, vignette and noise. Returns (H, W, 3), uint8."""
    width, height = canvas.camera.width, canvas.camera.height_px
    picture = cv2.resize(canvas.pixels, (width, height), interpolation=cv2.INTER_AREA)
    picture = cv2.cvtColor(picture, cv2.COLOR_BGRA2BGR).astype(np.float32)
    if halos:
        picture += spill(canvas, halos)
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
