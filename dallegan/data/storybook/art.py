"""Vector art for the procedural sources: polygons on a supersampled canvas.

Everything drawn is a polygon with a role ("base", "dark", "ink", ...). A `Sprite` is a list of polygons in a
unit frame: x to the right, y up, ground at y = 0, height about 1. Drawing a sprite takes one affine map of
all its vertices and one C call per polygon, which makes more than 1,500 images per second possible.
"""

import dataclasses
import functools
import math
import random
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Polygon = tuple[np.ndarray, str]  # vertices f32[V, 2], role

INK: Rgb = (38, 32, 40)
FIXED: dict[str, Rgb] = {
    "ink": INK,
    "white": (250, 250, 250),
    "eye": (20, 18, 24),
    "beak": (245, 160, 40),
    "wood": (120, 78, 46),
    "stem": (58, 140, 62),
    "glass": (188, 226, 242),
    "tyre": (46, 46, 52),
    "metal": (205, 208, 214),
    "sun": (255, 224, 120),
}
OUTLINE = 0.03  # ink contour, in sprite heights


def ellipse(cx: float, cy: float, rx: float, ry: float, role: str = "base", turn: float = 0.0) -> Polygon:
    """Returns an ellipse of radii rx, ry, turned by `turn` radians."""
    a = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    x, y = rx * np.cos(a), ry * np.sin(a)
    c, s = math.cos(turn), math.sin(turn)
    return np.stack([cx + c * x - s * y, cy + s * x + c * y], 1).astype(np.float32), role


def poly(points: Sequence[tuple[float, float]], role: str = "base") -> Polygon:
    """Returns a polygon through the given points."""
    return np.asarray(points, np.float32), role


def box(x0: float, y0: float, x1: float, y1: float, role: str = "base") -> Polygon:
    """Returns an upright rectangle."""
    return poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], role)


def limb(x0: float, y0: float, x1: float, y1: float, width: float, role: str = "base") -> Polygon:
    """Returns a capsule from one point to another."""
    a = math.atan2(y1 - y0, x1 - x0)
    t = np.linspace(0, math.pi, 7)
    head = np.stack([x1 + width * np.sin(a + t + math.pi) * -1, y1 + width * np.cos(a + t + math.pi)], 1)
    tail = np.stack([x0 + width * np.sin(a + t) * -1, y0 + width * np.cos(a + t)], 1)
    return np.concatenate([head, tail]).astype(np.float32), role


def _grow(points: np.ndarray, by: float) -> np.ndarray:
    """Offsets a polygon outwards along its vertex normals."""
    edge = np.roll(points, -1, 0) - points
    area = np.sum(points[:, 0] * np.roll(points[:, 1], -1) - np.roll(points[:, 0], -1) * points[:, 1])
    normal = np.stack([edge[:, 1], -edge[:, 0]], 1) * np.sign(area)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    vertex = normal + np.roll(normal, 1, 0)
    vertex /= np.maximum(np.linalg.norm(vertex, axis=1, keepdims=True), 0.6)
    return points + by * vertex


@dataclasses.dataclass(frozen=True)
class Sprite:
    """Polygons in the unit frame: first the ink contours of all, then the fills."""

    vertices: np.ndarray  # f32[V, 2]
    parts: tuple[tuple[int, int, str], ...]  # start, end, role
    lift: float = 0.0  # height above the ground, in sprite heights

    @classmethod
    def make(cls, polygons: Iterable[Polygon], lift: float = 0.0, thin: Iterable[str] = ("eye",)) -> "Sprite":
        """Scales polygons to height 1 (or width 1.3), feet on the ground; roles in `thin` get no contour."""
        polygons = list(polygons)
        every = np.concatenate([p for p, _ in polygons])
        low, high = every.min(0), every.max(0)
        scale = 1.0 / max(high[1] - low[1], (high[0] - low[0]) / 1.3)
        origin = np.array([(low[0] + high[0]) / 2, low[1]])
        fills = [((p - origin) * scale, role) for p, role in polygons]
        contours = [(_grow(p, OUTLINE), "ink") for p, role in fills if role not in set(thin)]
        parts, start = [], 0
        for p, role in contours + fills:
            parts.append((start, start + len(p), role))
            start += len(p)
        vertices = np.concatenate([p for p, _ in contours + fills]).astype(np.float32)
        return cls(vertices, tuple(parts), lift)


@functools.cache
def palette(base: Rgb) -> dict[str, Rgb]:
    """Returns the colour of each role in an object of this base colour."""
    light, dark, far = (
        mix(base, (255, 255, 255), 0.42),
        mix(base, (20, 10, 30), 0.28),
        mix(base, (20, 10, 30), 0.18),
    )
    return FIXED | {"base": base, "light": light, "dark": dark, "far": far}


def mix(a: Rgb, b: Rgb, t: float) -> Rgb:
    """Returns a + t (b - a)."""
    return (round(a[0] + t * (b[0] - a[0])), round(a[1] + t * (b[1] - a[1])), round(a[2] + t * (b[2] - a[2])))


def tint(colour: Rgb, gain: float) -> Rgb:
    """Returns a colour made brighter (gain > 1) or darker (gain < 1)."""
    return (min(255, int(colour[0] * gain)), min(255, int(colour[1] * gain)), min(255, int(colour[2] * gain)))


class Canvas:
    """An RGB image of `size` pixels, drawn `factor` times larger and averaged down.

    Both axes are in [0, 1], and y runs down.
    """

    def __init__(self, size: int, sky: tuple[Rgb, Rgb], sky_to: float) -> None:
        self.factor = 4 if size <= 32 else 3 if size <= 64 else 2
        self.side = size * self.factor
        ramp = Image.fromarray(np.array([[sky[0]], [sky[1]]], np.uint8))
        self.image = Image.new("RGB", (self.side, self.side), sky[1])
        self.image.paste(ramp.resize((self.side, max(1, int(self.side * sky_to))), Image.Resampling.BILINEAR))
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[tuple[float, float]], colour: Rgb) -> None:
        """Draws a filled polygon."""
        s = self.side
        self.draw.polygon([(x * s, y * s) for x, y in points], colour)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, colour: Rgb) -> None:
        """Draws a filled upright ellipse."""
        s = self.side
        self.draw.ellipse(((cx - rx) * s, (cy - ry) * s, (cx + rx) * s, (cy + ry) * s), colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Rgb) -> None:
        """Draws a filled rectangle."""
        s = self.side
        self.draw.rectangle((x0 * s, y0 * s, x1 * s, y1 * s), colour)

    def sprite(
        self, sprite: Sprite, x: float, ground: float, height: float, base: Rgb, flip: bool, turn: float
    ) -> None:
        """Draws a sprite of the given height with its feet at (x, ground), turned by `turn` radians."""
        s = self.side
        c, w = math.cos(turn) * height * s, math.sin(turn) * height * s
        m = -1.0 if flip else 1.0
        matrix = np.array([[c * m, w * m], [w, -c]], np.float32)
        offset = np.array([x * s, (ground - sprite.lift * height) * s], np.float32)
        points = sprite.vertices @ matrix + offset
        tones = palette(base)
        for start, end, role in sprite.parts:
            self.draw.polygon(points[start:end], tones[role])  # type: ignore[arg-type]  # float32 buffers are taken as they are

    def finish(self) -> np.ndarray:
        """Returns the image as uint8[size, size, 3]."""
        return np.asarray(self.image.reduce(self.factor))


def hills(canvas: Canvas, rng: random.Random, y: float, height: float, colour: Rgb) -> None:
    """Draws rolling ground whose crest is around y."""
    phase, waves = rng.random() * 6.28, 1.0 + 1.2 * rng.random()
    crest = [(i / 12, y - height * (0.5 + 0.5 * math.sin(phase + 6.28 * waves * i / 12))) for i in range(13)]
    canvas.polygon([*crest, (1, 1), (0, 1)], colour)


def landscape(place: str, size: int, rng: random.Random) -> tuple[Canvas, float, Rgb]:
    """Draws a place; returns the canvas, its horizon and the colour of a shadow on its ground."""
    h = 0.46 + 0.12 * rng.random()
    g = 0.9 + 0.16 * rng.random()  # daylight
    canvas, shadow = _PLACES[place](size, rng, h, g)
    return canvas, h, shadow


def _snow(size: int, rng: random.Random, h: float, g: float) -> tuple[Canvas, Rgb]:
    canvas = Canvas(size, (tint((150, 190, 226), g), tint((214, 230, 242), g)), h)
    for _ in range(3):
        x, s = rng.random(), 0.16 + 0.1 * rng.random()
        canvas.polygon([(x - s / 3, h + 0.02), (x, h - s), (x + s / 3, h + 0.02)], tint((92, 128, 138), g))
        canvas.polygon([(x - s / 6, h - s * 0.5), (x, h - s), (x + s / 6, h - s * 0.5)], (244, 248, 252))
    hills(canvas, rng, h + 0.02, 0.05, (226, 236, 246))
    hills(canvas, rng, h + 0.2, 0.06, (242, 247, 252))
    for _ in range(14):
        canvas.ellipse(rng.random(), rng.random() * 0.95, 0.011, 0.011, (255, 255, 255))
    return canvas, (196, 212, 230)


def _grass(size: int, rng: random.Random, h: float, g: float) -> tuple[Canvas, Rgb]:
    canvas = Canvas(size, (tint((110, 186, 240), g), tint((196, 230, 248), g)), h)
    canvas.ellipse(0.1 + 0.8 * rng.random(), 0.12, 0.07, 0.07, FIXED["sun"])
    hills(canvas, rng, h, 0.06, tint((104, 178, 82), g))
    hills(canvas, rng, h + 0.14, 0.05, tint((126, 200, 84), g))
    for _ in range(7):
        x, y = rng.random(), h + 0.14 + (0.84 - h) * rng.random()
        canvas.polygon(
            [(x - 0.02, y), (x - 0.012, y - 0.05), (x, y), (x + 0.012, y - 0.05), (x + 0.02, y)],
            tint((76, 152, 60), g),
        )
    return canvas, tint((92, 160, 66), g)


def _desert(size: int, rng: random.Random, h: float, g: float) -> tuple[Canvas, Rgb]:
    canvas = Canvas(size, (tint((250, 196, 122), g), tint((254, 232, 186), g)), h)
    canvas.ellipse(0.1 + 0.8 * rng.random(), h - 0.14 * rng.random() - 0.1, 0.09, 0.09, (255, 244, 206))
    hills(canvas, rng, h + 0.02, 0.1, tint((226, 176, 104), g))
    hills(canvas, rng, h + 0.16, 0.08, tint((238, 196, 124), g))
    cactus = tint((86, 140, 84), g)
    x, y, s = 0.06 + 0.88 * rng.random(), h + 0.1, 0.18 + 0.08 * rng.random()
    canvas.box(x - 0.018, y - s, x + 0.018, y, cactus)
    canvas.box(x - 0.06, y - s * 0.6, x, y - s * 0.6 + 0.024, cactus)
    canvas.box(x - 0.06, y - s * 0.85, x - 0.036, y - s * 0.6, cactus)
    canvas.box(x, y - s * 0.45, x + 0.055, y - s * 0.45 + 0.024, cactus)
    canvas.box(x + 0.031, y - s * 0.75, x + 0.055, y - s * 0.45, cactus)
    return canvas, tint((206, 158, 92), g)


def _beach(size: int, rng: random.Random, h: float, g: float) -> tuple[Canvas, Rgb]:
    canvas = Canvas(size, (tint((104, 190, 244), g), tint((206, 238, 250), g)), h - 0.06)
    canvas.box(0, h - 0.08, 1, h + 0.12, tint((58, 156, 208), g))
    canvas.box(0, h, 1, h + 0.1, tint((92, 190, 220), g))
    hills(canvas, rng, h + 0.1, 0.05, (240, 250, 250))
    hills(canvas, rng, h + 0.13, 0.05, tint((246, 222, 160), g))
    x, lean = rng.choice((0.1, 0.9)) + 0.08 * rng.random() - 0.04, 0.06 * rng.random()
    top = h - 0.26
    canvas.polygon(
        [(x - 0.02, h + 0.18), (x + lean - 0.012, top), (x + lean + 0.012, top), (x + 0.022, h + 0.18)],
        tint((150, 104, 62), g),
    )
    for dx, dy in ((-0.16, 0.05), (-0.12, -0.06), (0.0, -0.1), (0.12, -0.06), (0.16, 0.05)):
        canvas.polygon(
            [
                (x + lean, top),
                (x + lean + dx * 0.6, top + dy - 0.035),
                (x + lean + dx, top + dy),
                (x + lean + dx * 0.5, top + dy * 0.5 + 0.02),
            ],
            tint((62, 150, 74), g),
        )
    return canvas, tint((218, 190, 128), g)


def _sea(size: int, rng: random.Random, h: float, g: float) -> tuple[Canvas, Rgb]:
    h -= 0.12
    canvas = Canvas(size, (tint((140, 200, 244), g), tint((224, 240, 248), g)), h)
    for _ in range(2):
        x, y = rng.random(), 0.06 + 0.2 * rng.random()
        for dx in (-0.07, 0.0, 0.07):
            canvas.ellipse(x + dx, y, 0.06, 0.035 + 0.01 * (dx == 0), (250, 252, 254))
    for i, blue in enumerate(((36, 112, 176), (40, 126, 190), (48, 140, 202), (58, 154, 212))):
        y = h + i * (1 - h) / 4
        canvas.box(0, y, 1, 1, tint(blue, g))
        phase = rng.random() / 6
        for k in range(-1, 6):
            canvas.ellipse(phase + k / 5 + 0.1, y + 0.02, 0.1, 0.03, tint(blue, g))
    return canvas, tint((30, 100, 160), g)


def _forest(size: int, rng: random.Random, h: float, g: float) -> tuple[Canvas, Rgb]:
    canvas = Canvas(size, (tint((92, 148, 108), g), tint((150, 190, 130), g)), h)
    for layer, (leaf, trunk) in enumerate((((58, 112, 74), (76, 66, 52)), ((36, 88, 56), (92, 66, 44)))):
        for k in range(5):
            x = (k + rng.random()) / 5
            top = 0.06 + 0.12 * rng.random()
            canvas.box(x - 0.022, top, x + 0.022, h + 0.06 + 0.05 * layer, tint(trunk, g))
            canvas.polygon([(x - 0.13, top + 0.22), (x, top - 0.14), (x + 0.13, top + 0.22)], tint(leaf, g))
    hills(canvas, rng, h + 0.08, 0.05, tint((74, 104, 56), g))
    hills(canvas, rng, h + 0.22, 0.05, tint((86, 116, 60), g))
    return canvas, tint((58, 82, 44), g)


def _city(size: int, rng: random.Random, h: float, g: float) -> tuple[Canvas, Rgb]:
    canvas = Canvas(size, (tint((168, 192, 212), g), tint((224, 226, 226), g)), h)
    x = -0.05
    while x < 1:
        w, top = 0.13 + 0.08 * rng.random(), h - 0.16 - 0.26 * rng.random()
        wall = rng.choice(((132, 140, 156), (156, 146, 146), (112, 122, 140)))
        canvas.box(x, top, x + w, h + 0.1, tint(wall, g))
        for wy in (0.03, 0.1, 0.17):
            for wx in (0.25, 0.65):
                canvas.box(
                    x + w * wx - 0.015, top + wy, x + w * wx + 0.015, top + wy + 0.035, (246, 232, 170)
                )
        x += w + 0.012
    canvas.box(0, h + 0.06, 1, h + 0.12, tint((178, 176, 174), g))
    canvas.box(0, h + 0.12, 1, 1, tint((104, 106, 114), g))
    phase = 0.2 * rng.random()
    for k in range(-1, 5):
        canvas.box(phase + k * 0.25, 0.94, phase + k * 0.25 + 0.12, 0.96, (232, 226, 196))
    return canvas, tint((76, 78, 86), g)


def _night(size: int, rng: random.Random, h: float, g: float) -> tuple[Canvas, Rgb]:
    canvas = Canvas(size, (tint((14, 18, 52), g), tint((48, 52, 110), g)), h)
    for _ in range(12):
        canvas.ellipse(rng.random(), rng.random() * h, 0.009, 0.009, (250, 246, 214))
    x, y = 0.12 + 0.76 * rng.random(), 0.12 + 0.06 * rng.random()
    canvas.ellipse(x, y, 0.075, 0.075, (252, 244, 200))
    canvas.ellipse(x + 0.035, y - 0.02, 0.062, 0.062, tint((20, 24, 62), g))
    hills(canvas, rng, h + 0.02, 0.07, tint((34, 44, 84), g))
    hills(canvas, rng, h + 0.16, 0.06, tint((46, 58, 98), g))
    return canvas, tint((28, 34, 66), g)


_PLACES = {
    "snow": _snow,
    "grass": _grass,
    "desert": _desert,
    "beach": _beach,
    "sea": _sea,
    "forest": _forest,
    "city": _city,
    "night": _night,
}
