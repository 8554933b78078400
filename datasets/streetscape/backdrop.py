"""The sky, the skyline, and the ground with its lane markings, sidewalks and shadows.

Colors are planes (3, H, W), so that per-pixel factors (H, W) broadcast over contiguous rows.
"""

from functools import lru_cache

import cv2
import numpy as np

from .camera import NEAR, SUPERSAMPLING
from .colors import LEAVES, WALLS, gray, palette, pick

SLABS = palette("a8a49c b8b0a4 98948e a89888")
VERGES = np.concatenate([LEAVES, palette("8a8478 7a7468 a09888")])
BACKGROUNDS = np.concatenate([LEAVES, WALLS])


@lru_cache(maxsize=1)
def noise_tile():
    """Return tileable 1/f noise (512, 512), float32, of zero mean and unit variance."""
    spectrum = np.fft.rfft2(np.random.default_rng(0).normal(size=(512, 512)))
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512)[None])
    frequency[0, 0] = np.inf
    tile = np.fft.irfft2(spectrum / frequency, s=(512, 512))
    return ((tile - tile.mean()) / tile.std()).astype(np.float32)


def tiled_noise(x, y):
    """Sample the tiled noise at coordinates x and y of equal shape."""
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    return cv2.remap(noise_tile(), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def as_picture(planes):
    """Planes (3, H, W) -> canvas pixels (H, W, 4), uint8, without objects."""
    planes = [np.minimum(np.maximum(plane, 0), 255).astype(np.uint8) for plane in planes]
    return cv2.merge([*planes, np.zeros_like(planes[0])])


def paint_backdrop(scene, canvas, rng):
    camera = scene.camera
    rows, columns = canvas.pixels.shape[:2]
    v = (np.arange(rows, dtype=np.float32) + 0.5) / SUPERSAMPLING
    u = (np.arange(columns, dtype=np.float32) + 0.5) / SUPERSAMPLING
    split = int(np.clip(np.ceil(camera.cy * SUPERSAMPLING), 1, rows - 1))
    canvas.pixels[:split] = as_picture(sky(scene, u, v[:split], rng))
    paint_skyline(scene, canvas.pixels[:split], u, v[:split], rng)

    z = camera.focal * camera.height / np.maximum(v[split:] - camera.cy, 0.08)[:, None]
    x = (u - camera.cx) * z / camera.focal
    ground = ground_colors(scene, x, z, rng)
    light_ground(scene, ground, z, split)
    canvas.pixels[split:] = as_picture(ground)


def sky(scene, u, v, rng):
    """Return planes of the cloudy sky at columns u and rows v."""
    camera, light = scene.camera, scene.light
    rise = np.clip((camera.cy - v) / camera.cy, 0, 1)[:, None]
    horizon, zenith = light.horizon[:, None, None], light.zenith[:, None, None]
    blend = (1 - rise) ** 1.6
    grid_u, grid_v = np.meshgrid(u, camera.cy - v)
    scale = 512 / camera.width
    cloud = tiled_noise(rng.uniform(0, 512) + grid_u * 0.5 * scale, rng.uniform(0, 512) + grid_v * 1.6 * scale)
    cloud = np.clip(cloud * 0.8 + light.clouds - 0.5, 0, 1) * 0.55 * np.minimum(1, rise * 3)
    white = horizon * 0.6 + zenith * 0.2 + (10 if light.dark else 50)
    return (horizon * blend + zenith * (1 - blend)) * (1 - cloud) + white * cloud


def paint_skyline(scene, pixels, u, v, rng):
    """Paint distant trees and roofs over pixels (H, W, 4) at columns u and rows v."""
    camera, light = scene.camera, scene.light
    along = rng.uniform(0, 512) + u[None] * (512 / camera.width)
    edge = tiled_noise(along, np.full(along.shape, rng.uniform(0, 512)))[0]
    steps = np.repeat(rng.uniform(0, 1, 60), -(-len(u) // 60))[: len(u)]
    skyline = camera.cy - camera.height_px * (0.04 + 0.03 * np.abs(edge) + rng.uniform(0, 0.08) * steps)
    color = pick(rng, BACKGROUNDS) * (light.ambient + light.sun * 0.4)
    far = np.clip(light.apply_haze(color, rng.uniform(60, 130)), 0, 255)
    pixels[v[:, None] > skyline] = [*far, 0]


def ground_colors(scene, x, z, rng):
    """Return planes of the ground's albedo at points x (H, W), z (H, 1) in camera axes."""
    # Python floats keep the arrays in float32
    half, sidewalk, offset, yaw = (float(n) for n in (scene.half_width, scene.sidewalk, scene.offset, scene.yaw))
    c, sn = float(np.cos(yaw)), float(np.sin(yaw))
    s, t = z * c + x * sn, x * c - z * sn + offset
    away = np.abs(t)
    noise = tiled_noise(s * 40, t * 40) * np.minimum(1, 14 / z)  # fade out where pixels undersample it
    noise += 0.5 * tiled_noise(s * 3 + 99, t * 3)
    asphalt = gray(rng.uniform(70, 120)) + rng.normal(0, 3, 3)
    slabs, verge = pick(rng, SLABS), pick(rng, VERGES)
    zones = np.array([asphalt, slabs * 1.18, slabs, verge], np.float32)
    zone = (away > half).astype(np.uint8) + (away >= half + 0.16) + (away > half + sidewalk)
    ground = np.take(zones.T, zone, axis=1)

    close = np.s_[np.count_nonzero(z >= 18) :]  # rows: joints farther away are invisible
    joint = ((t[close] % 0.8 < 0.04) | (s[close] % 0.8 < 0.04)) & (zone[close] > 0) & (away[close] < half + sidewalk)
    ground[:, close] *= np.where(joint, np.float32(0.82), 1)
    ground *= 1 + 0.075 * noise
    ground *= np.where(away < half, 1 - np.cos(t / half * np.pi * 2) * 0.05, 1)
    paint = np.full((3, 1), rng.uniform(190, 235))
    marks = lane_marks(s, t, half, rng)
    ground[:, marks] = ground[:, marks] * 0.25 + paint * 0.75
    return ground


def lane_marks(s, t, half, rng):
    """Return a mask of the lane markings at points s, t of the road."""
    away = np.abs(t)
    road = away < half
    marks = dashed(away < 0.07, s, 9, 4.5)
    if half > 5:
        marks |= dashed(np.abs(away - half * 0.5) < 0.06, s, 6, 2.5)
    marks &= road
    if rng.random() < 0.5:
        marks |= np.abs(away - half + 0.35) < 0.06
    if rng.random() < 0.4:
        zebra = rng.uniform(7, 28)
        marks |= dashed((s > zebra) & (s < zebra + 3) & road, t, 1.0, 0.5)
    return marks


def dashed(mask, along, period, length):
    """Cut a mask into dashes, in place."""
    mask[mask] = along[mask] % period < length
    return mask


def light_ground(scene, ground, z, split):
    """Apply shadows, sunlight and haze to the ground's planes (3, H, W) at distances z (H, 1), in place."""
    light = scene.light
    strong = float(light.sun.mean() / (light.sun + light.ambient).mean())
    shade = np.ones(ground.shape[1:], np.float32)
    shadows = [shadow for obj in scene.objects for shadow in shadows_of(obj, scene.camera, light, strong)]
    for share, points in sorted(shadows, key=lambda shadow: -shadow[0]):  # the darkest one is painted last
        pixels = scene.camera.project(points) * SUPERSAMPLING - (0, split)
        hull = cv2.convexHull(np.clip(pixels, -4000, 4000).astype(np.float32)).astype(np.int32)
        cv2.fillConvexPoly(shade, hull, share)
    shade = cv2.GaussianBlur(shade, (0, 0), (1.5 if strong < 0.25 else 0.5) * SUPERSAMPLING)
    ground *= np.float32(light.ambient + light.sun * max(0.15, -light.direction[1]))[:, None, None]
    seen = np.exp(-z / float(light.haze))
    ground *= shade * seen
    ground += light.horizon[:, None, None] * (1 - seen)


def shadows_of(obj, camera, light, strong):
    """Yield the object's cast shadow and its contact shadow.

    Each is the share of light that remains, and points (n, 3) in camera axes with the shadow as their convex hull.
    """
    height = obj.model.size[1]
    foot = obj.to_camera(obj.base * 1.04)
    reach = -light.direction / max(0.25, -light.direction[1]) * min(height, 6)
    cast = foot + [reach[0], 0, reach[2]]
    cast[:, 1] = camera.height
    share = 1 - 0.9 * strong
    if share < 0.45 and obj.kind is None and height > 3:
        share = 0.6
    for left, points in ((share, np.concatenate([foot, cast])), (0.45, foot)):
        points = points[points[:, 2] > NEAR]
        if len(points) >= 3:
            yield left, points
