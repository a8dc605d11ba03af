"""The demo scenes, step 1: a seed -> one picture with its instances.

Objects of six classes lie over each other on a muted, textured background. Sizes, turns and light say nothing about
the class; the outline does always, texture and hue usually: each class has a texture of its own that it wears nine
times out of ten, and a range of hues that it wears eight times out of ten, independently of each other. Textures run
on and outlines close, so hidden parts can be guessed. (Colours were free at first: within the demo's budget neither
its detector nor its segmentor learned anything.)

Touch this file for what a scene looks like, and raise SCENE_VERSION when pixels change; not for files and formats
(demo_files.py). Guarded by tests/datasets/test_demo_scenes.py.

Lengths are in pixels of a 192 px scene and scale with its size (another size is another scene of the same kind); x
points right, y down.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image

SCENE_VERSION = 2
CLASSES = ('circle', 'square', 'triangle', 'star', 'ring', 'cross')
BACKGROUND = 0  # in label maps; class c of CLASSES is c + 1
REFERENCE_SIZE = 192
NUM_OBJECTS = (2, 5)
RADIUS = (22., 46.)
OWN_TEXTURE_SHARE = 0.9
OWN_HUE_SHARE = 0.8
HUE_SPREAD = 0.035  # standard deviation; hues run from 0 to 1, those of the classes are 1/6 apart
MIN_VISIBLE_SHARE = 0.4  # of every object, after all others are laid on it
MAX_TRIES = 12  # to place one object


@dataclass
class Scene:
    """A picture and what lies where. In instance_HW 0 is background and i the i-th object; its class is
    CLASSES[classes[i - 1]], and it lies on all objects before it."""

    image_HWC: np.ndarray
    instance_HW: np.ndarray
    classes: list[int]

    @property
    def label_HW(self) -> np.ndarray:
        """uint8: 0 background, c + 1 class c."""
        return np.array([BACKGROUND, *(index + 1 for index in self.classes)], np.uint8)[self.instance_HW]


def draw_scene(seed: int | Sequence[int], size: int = REFERENCE_SIZE) -> Scene:
    """The scene of this seed (one or more non-negative integers), size x size pixels, RGB; always the same one."""
    rng = np.random.default_rng(seed)
    y_HW, x_HW = np.mgrid[:size, :size].astype(np.float32) * np.float32(REFERENCE_SIZE / size)
    light_angle = rng.uniform(0, 2 * math.pi)
    light_xy = math.cos(light_angle), math.sin(light_angle)
    image_HWC = _background(rng, x_HW, y_HW)
    for _ in range(rng.integers(2, 6)):
        _lay_pebble(rng, image_HWC, x_HW, y_HW)
    instance_HW = np.zeros((size, size), np.uint8)
    objects: list[_Object] = []
    for _ in range(rng.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1)):
        if _lay_object(rng, objects, instance_HW, x_HW, y_HW):
            _paint(rng, image_HWC, objects[-1], x_HW, y_HW, light_xy)
    tilt_HW = (x_HW * light_xy[0] + y_HW * light_xy[1]) / REFERENCE_SIZE - 0.5
    image_HWC *= 1 + rng.uniform(0, 0.25) * tilt_HW[..., None]
    image_HWC += rng.normal(0, rng.uniform(0.005, 0.02), (size, size, 1)).astype(np.float32)
    return Scene(np.uint8(np.clip(image_HWC, 0, 1) * 255 + 0.5), instance_HW, [one.class_index for one in objects])


# Outlines: signed distance to the outline of the shape of radius about 1, negative inside; in units of the radius.

def _circle(x, y):
    return np.hypot(x, y) - 1


def _square(x, y):
    return np.maximum(np.abs(x), np.abs(y)) - 0.88


def _triangle(x, y):
    turns = math.pi / 2, math.pi * 7 / 6, math.pi * 11 / 6
    sides = [x * math.cos(turn) + y * math.sin(turn) for turn in turns]
    return np.maximum.reduce(sides) - 0.62


def _star(x, y):
    outer, inner, fold = 1.22, 0.55, math.pi / 5
    angle = np.abs((np.arctan2(y, x) + fold) % (2 * fold) - fold)  # one half of one point
    radius = np.hypot(x, y)
    edge_x, edge_y = inner * math.cos(fold) - outer, inner * math.sin(fold)
    return (edge_y * (radius * np.cos(angle) - outer) - edge_x * radius * np.sin(angle)) / math.hypot(edge_x, edge_y)


def _ring(x, y):
    return np.abs(np.hypot(x, y) - 0.75) - 0.27


def _cross(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 1.08, y - 0.36), np.maximum(x - 0.36, y - 1.08))


# Textures: a field between 0 and 1 over x, y; the same family never looks the same twice.

def _stripes(rng: Generator, x, y):
    return _crisp(np.sin(2 * np.pi * x / rng.uniform(7, 13) + rng.uniform(0, 6)))


def _checker(rng: Generator, x, y):
    period = rng.uniform(12, 20)
    shift_x, shift_y = rng.uniform(0, 6, 2)
    return _crisp(np.sin(2 * np.pi * x / period + shift_x) * np.sin(2 * np.pi * y / period + shift_y), 3)


def _dots(rng: Generator, x, y):
    period = rng.uniform(9, 14)
    shift_x, shift_y = rng.uniform(0, period, 2)
    radius = np.hypot((x + shift_x) % period - period / 2, (y + shift_y) % period - period / 2)
    return np.clip(period * rng.uniform(0.24, 0.34) - radius + 0.5, 0, 1)


def _octaves(rng: Generator, x, y):
    height, width = x.shape
    field = np.zeros_like(x)
    for step, weight in ((20, 0.5), (9, 0.35), (4, 0.25)):
        step = max(1, step * height / max(1., float(np.ptp(x) + np.ptp(y)) / 1.6))
        grid = rng.random((int(height / step) + 3, int(width / step) + 3), dtype=np.float32)
        field += weight * np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip((field - 0.55) * 2 + 0.5, 0, 1)


def _gradient(rng: Generator, x, y):
    radius = np.hypot(x - rng.uniform(-30, 30), y - rng.uniform(-30, 30))
    return 0.5 + 0.5 * np.sin(radius / rng.uniform(12, 22) + rng.uniform(0, 6))


def _lattice(rng: Generator, x, y):
    period, width = rng.uniform(9, 14), rng.uniform(1, 1.6)
    from_line_x = np.abs((x + rng.uniform(0, 9)) % period - period / 2)
    from_line_y = np.abs((y + rng.uniform(0, 9)) % period - period / 2)
    return np.clip(width - np.minimum(from_line_x, from_line_y) + 0.5, 0, 1)


def _crisp(wave, sharpness: float = 2.5):
    return np.clip(0.5 + sharpness * wave, 0, 1)


# In the order of CLASSES: the outline, the own texture, and the area at radius 1 (counted on a grid).
OUTLINES: tuple[Callable, ...] = (_circle, _square, _triangle, _star, _ring, _cross)
TEXTURES: tuple[Callable, ...] = (_stripes, _checker, _dots, _octaves, _gradient, _lattice)
UNIT_GRID = np.meshgrid(np.linspace(-1.3, 1.3, 200), np.linspace(-1.3, 1.3, 200))
UNIT_AREAS = [2.6 ** 2 * float((outline(*UNIT_GRID) < 0).mean()) for outline in OUTLINES]


class _Object:
    """An object's outline somewhere in the picture; every second one near an earlier one, so that they overlap."""

    def __init__(self, rng: Generator, class_index: int, centres: list[tuple[float, float]]) -> None:
        self.class_index = class_index
        self.radius = rng.uniform(*RADIUS)
        low, high = 0.7 * self.radius, REFERENCE_SIZE - 0.7 * self.radius
        if centres and rng.random() < 0.5:
            near_x, near_y = centres[rng.integers(len(centres))]
            angle, far = rng.uniform(0, 2 * np.pi), self.radius + rng.uniform(0, 15)
            centre = near_x + far * math.cos(angle), near_y + far * math.sin(angle)
            self.centre = float(np.clip(centre[0], low, high)), float(np.clip(centre[1], low, high))
        else:
            self.centre = tuple(rng.uniform(low, high, 2).tolist())
        self.turn = rng.uniform(0, 2 * np.pi)
        self.stretch = math.exp(rng.uniform(-0.15, 0.15))
        self.area = UNIT_AREAS[class_index] * self.radius ** 2

    def window(self, size: int) -> tuple[slice, slice]:
        """Rows and columns that can hold the object and its shadow."""
        return _window(self.centre, 1.3 * self.radius * 1.17 + 7, size)

    def own_axes(self, x, y) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates along the object's own, turned axes, from its centre."""
        x, y = x - self.centre[0], y - self.centre[1]
        cosine, sine = math.cos(self.turn), math.sin(self.turn)
        return x * cosine + y * sine, y * cosine - x * sine

    def distance(self, x, y) -> np.ndarray:
        """About the signed distance in pixels to the outline, negative inside."""
        x, y = self.own_axes(x, y)
        length, width = self.radius * self.stretch, self.radius / self.stretch
        return OUTLINES[self.class_index](x / length, y / width) * self.radius


def _lay_object(rng: Generator, objects: list[_Object], instance_HW: np.ndarray, x_HW, y_HW) -> bool:
    """Puts one more object on top where enough stays visible of all; False when no such place is found."""
    size, class_index = len(instance_HW), int(rng.integers(len(CLASSES)))
    for _ in range(MAX_TRIES):
        new = _Object(rng, class_index, [one.centre for one in objects])
        window = new.window(size)
        after_HW = instance_HW.copy()
        after_HW[window][new.distance(x_HW[window], y_HW[window]) < 0] = len(objects) + 1
        visible = np.bincount(after_HW.ravel(), minlength=len(objects) + 2)[1:]
        whole = np.array([one.area for one in (*objects, new)]) * (size / REFERENCE_SIZE) ** 2
        if np.all(visible >= MIN_VISIBLE_SHARE * whole):
            instance_HW[:] = after_HW
            objects.append(new)
            return True
    return False


def _paint(rng: Generator, image_HWC: np.ndarray, placed: _Object, x_HW, y_HW, light_xy: tuple[float, float]) -> None:
    window = placed.window(len(image_HWC))
    x, y = x_HW[window], y_HW[window]
    region = image_HWC[window]
    shadow = np.clip(0.5 - placed.distance(x - 4 * light_xy[0], y - 4 * light_xy[1]) / 5, 0, 1)
    region *= (1 - 0.4 * shadow)[..., None]
    family = placed.class_index if rng.random() < OWN_TEXTURE_SHARE else int(rng.integers(len(TEXTURES)))
    across, along = placed.own_axes(x, y)
    field = TEXTURES[family](rng, across, along)
    shade = 1 - 0.28 * ((x - placed.centre[0]) * light_xy[0] + (y - placed.centre[1]) * light_xy[1]) / placed.radius
    alpha = np.clip(0.5 - placed.distance(x, y), 0, 1)[..., None]
    region += alpha * (_coloured(field, *_object_colours(rng, placed.class_index)) * shade[..., None] - region)


def _background(rng: Generator, x, y) -> np.ndarray:
    turn = rng.uniform(0, 2 * np.pi)
    across, along = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    pattern = TEXTURES[rng.integers(len(TEXTURES))](rng, across / rng.uniform(1.2, 2.5), along / rng.uniform(1.2, 2.5))
    field = 0.5 * pattern + 0.5 * _octaves(rng, x, y)
    return _coloured(field.astype(np.float32), *_background_colours(rng))


def _lay_pebble(rng: Generator, image_HWC: np.ndarray, x_HW, y_HW) -> None:
    """A small textured ellipse that belongs to the background: texture alone does not make an object."""
    centre, radius = rng.uniform(0, REFERENCE_SIZE, 2).tolist(), rng.uniform(4, 9)
    window = _window(centre, radius + 1, len(image_HWC))
    near = np.hypot(x_HW[window] - centre[0], (y_HW[window] - centre[1]) * rng.uniform(1, 2))
    field = TEXTURES[rng.integers(len(TEXTURES))](rng, x_HW[window], y_HW[window])
    alpha = np.clip(radius - near + 0.5, 0, 1)[..., None]
    image_HWC[window] += alpha * (_coloured(field, *_background_colours(rng)) - image_HWC[window])


def _window(centre: Sequence[float], reach: float, size: int) -> tuple[slice, slice]:
    """Rows and columns of the picture within `reach` of the centre; at least one of each."""
    scale = size / REFERENCE_SIZE
    (left, right), (top, bottom) = [(max(0, min(size - 1, int((at - reach) * scale))),
                                     max(1, min(size, int((at + reach) * scale) + 1))) for at in centre]
    return slice(top, bottom), slice(left, right)


def _object_colours(rng: Generator, class_index: int) -> np.ndarray:
    """A bright and a dark colour of about the same hue, in any order: a hue of the class, or any."""
    own = rng.random() < OWN_HUE_SHARE
    hue = class_index / len(CLASSES) + rng.normal(0, HUE_SPREAD) if own else rng.random()
    bright = _rgb(hue, rng.uniform(0.6, 1), rng.uniform(0.75, 1))
    dark = _rgb(hue + rng.normal(0, HUE_SPREAD), rng.uniform(0.6, 1), rng.uniform(0.2, 0.5))
    return np.float32([bright, dark][::rng.choice((-1, 1))])


def _background_colours(rng: Generator) -> np.ndarray:
    """Two muted colours that are not far apart."""
    middle, spread = rng.uniform(0.25, 0.75) + rng.uniform(-0.05, 0.05, 3), rng.uniform(0.04, 0.12)
    return np.float32([middle - spread, middle + spread])


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB of hue, saturation and value, each in [0, 1]; the hue goes round."""
    return value * (1 - saturation * np.clip(np.abs((hue * 6 + np.array([3, 1, 5])) % 6 - 3) - 1, 0, 1))


def _coloured(field: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first + field[..., None].astype(np.float32) * (second - first)
