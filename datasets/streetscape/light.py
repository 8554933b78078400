"""Weather, time of day and their effect on colors."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .colors import palette


@dataclass
class Light:
    """Lighting of a scene; colors are BGR."""

    zenith: np.ndarray
    horizon: np.ndarray
    ambient: np.ndarray
    sun: np.ndarray
    direction: np.ndarray  # unit vector toward the sun, in camera axes
    haze: float  # distance in meters at which haze replaces 63% of a color
    clouds: float
    dark: bool  # lamps and windows are lit

    def shade(self, albedo, normals, distance, sunlight=1.0):
        """Shade matte surfaces (n, 3). `sunlight` is the share of direct sunlight they receive."""
        direct = np.maximum(0, normals @ self.direction) * sunlight
        # an upward-facing surface sees the whole sky, an upright one half of it
        sky = 0.85 - 0.15 * normals[..., 1]
        return self.apply_haze(albedo * (self.ambient * sky[..., None] + self.sun * direct[..., None]), distance)

    def apply_haze(self, colors, distance):
        """Blend colors (n, 3) into the haze, seen from distances (n,) in meters."""
        seen = np.exp(-distance / self.haze)[..., None]
        return colors * seen + self.horizon * (1 - seen)


class Weather(NamedTuple):
    share: float  # probability
    sky: str  # zenith and horizon
    ambient: tuple
    sun: tuple
    haze: tuple  # range of `Light.haze`
    clouds: float
    dark: bool = False


WEATHERS = {
    "sunny": Weather(0.34, "5f93d0 cfdfec", (0.56, 0.52, 0.48), (0.46, 0.54, 0.58), (150, 400), 0.7),
    "hazy": Weather(0.14, "b8c0c8 d4d6d6", (0.66, 0.66, 0.66), (0.15, 0.16, 0.17), (28, 60), 0.2),
    "overcast": Weather(0.24, "98a0aa cdd0d2", (0.70, 0.68, 0.66), (0.08, 0.08, 0.08), (90, 250), 1.0),
    "dusk": Weather(0.16, "4a5a86 e8b088", (0.42, 0.36, 0.34), (0.20, 0.34, 0.48), (70, 200), 0.9, dark=True),
    "night": Weather(0.12, "141a2c 3a4058", (0.25, 0.21, 0.20), (0.05, 0.08, 0.10), (60, 140), 0.3, dark=True),
}


def make_light(rng):
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.35, 1.1)
    kind = rng.choice(list(WEATHERS), p=[weather.share for weather in WEATHERS.values()])
    weather = WEATHERS[kind]
    if kind == "dusk":
        elevation = rng.uniform(0.1, 0.25)
    haze = rng.uniform(*weather.haze)
    direction = np.array([np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    ambient, sun = np.array([weather.ambient, weather.sun]) * rng.uniform(0.82, 1.18)
    return Light(*palette(weather.sky), ambient, sun, direction, haze, weather.clouds, weather.dark)
