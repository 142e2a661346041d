"""The 16 objects of the storybook, as sprites: eight animals in three poses, eight things in one."""

import dataclasses
import functools
import math

from dallegan.data.storybook.art import Polygon, Sprite, box, ellipse, limb, poly


@dataclasses.dataclass(frozen=True)
class Quadruped:
    """Proportions of a four-legged animal seen from the side, in units of its body's half length."""

    body: float  # half height of the trunk
    leg: float  # length of the legs
    leg_width: float
    head: float  # radius
    neck: tuple[float, float]  # head centre, from the shoulder
    ear: str  # round | point | flop | long | fan
    tail: str  # stub | whip | wag | puff | hair
    snout: float = 0.5  # length, in head radii
    neck_width: float = 0.0  # 0: head sits on the shoulder


QUADRUPEDS = {
    "bear": Quadruped(0.66, 0.42, 0.2, 0.44, (0.28, 0.36), "round", "stub", 0.55),
    "cat": Quadruped(0.4, 0.44, 0.11, 0.42, (0.24, 0.52), "point", "whip", 0.25),
    "dog": Quadruped(0.42, 0.58, 0.13, 0.36, (0.34, 0.46), "flop", "wag", 0.95),
    "rabbit": Quadruped(0.58, 0.18, 0.16, 0.4, (0.22, 0.44), "long", "puff", 0.3),
    "elephant": Quadruped(0.7, 0.52, 0.2, 0.46, (0.34, 0.26), "fan", "stub", 0.0),
    "horse": Quadruped(0.4, 0.86, 0.11, 0.26, (0.46, 0.86), "point", "hair", 1.15, 0.24),
}


def _head(q: Quadruped, x: float, y: float) -> list[Polygon]:
    r = q.head
    back: list[Polygon] = []
    front: list[Polygon] = []
    if q.ear == "round":
        back += [
            ellipse(x - 0.62 * r, y + 0.78 * r, 0.36 * r, 0.36 * r, "dark"),
            ellipse(x + 0.45 * r, y + 0.84 * r, 0.36 * r, 0.36 * r),
        ]
    elif q.ear == "point":
        back += [
            poly(
                [(x - 0.85 * r, y + 0.4 * r), (x - 0.7 * r, y + 1.6 * r), (x - 0.05 * r, y + 0.8 * r)], "dark"
            )
        ]
        back += [poly([(x, y + 0.8 * r), (x + 0.62 * r, y + 1.6 * r), (x + 0.85 * r, y + 0.4 * r)])]
    elif q.ear == "flop":
        front += [ellipse(x - 0.5 * r, y - 0.05 * r, 0.34 * r, 0.8 * r, "dark", 0.25)]
    elif q.ear == "long":
        back += [
            ellipse(x - 0.45 * r, y + 1.55 * r, 0.24 * r, 1.0 * r, "dark", 0.22),
            ellipse(x + 0.1 * r, y + 1.6 * r, 0.24 * r, 1.0 * r),
        ]
    else:
        front += [ellipse(x - 0.62 * r, y + 0.08 * r, 0.72 * r, 0.95 * r, "dark")]
        back += [
            limb(x + 0.75 * r, y - 0.1 * r, x + 1.15 * r, y - 1.3 * r, 0.25 * r),
            limb(x + 1.15 * r, y - 1.3 * r, x + 1.6 * r, y - 1.5 * r, 0.18 * r),
        ]
    out = [*back, ellipse(x, y, r, r * 0.92)]
    if q.snout:
        end = x + r * (0.55 + 0.55 * q.snout)
        out += [
            limb(
                x + 0.5 * r,
                y - 0.28 * r,
                end,
                y - (0.32 + 0.25 * (q.neck_width > 0)) * r,
                0.4 * r,
                "light" if q.snout < 0.9 else "base",
            )
        ]
        out += [ellipse(end + 0.25 * r, y - 0.2 * r, 0.17 * r, 0.14 * r, "eye")]
    return [*out, *front, ellipse(x + 0.35 * r, y + 0.2 * r, 0.13 * r, 0.16 * r, "eye")]


def _tail(q: Quadruped, x: float, y: float) -> list[Polygon]:
    if q.tail == "whip":
        return [limb(x, y, x - 0.4, y + 0.3, 0.08), limb(x - 0.4, y + 0.3, x - 0.34, y + 0.78, 0.08)]
    if q.tail == "wag":
        return [limb(x, y, x - 0.38, y + 0.42, 0.1)]
    if q.tail == "puff":
        return [ellipse(x - 0.06, y, 0.2, 0.2, "light")]
    if q.tail == "hair":
        return [
            limb(x, y, x - 0.24, y - 0.2, 0.1, "dark"),
            limb(x - 0.24, y - 0.2, x - 0.3, y - 0.75, 0.12, "dark"),
        ]
    return [limb(x, y, x - 0.16, y - 0.12, 0.08, "dark")]


def _quadruped(q: Quadruped, pose: str) -> list[Polygon]:
    w = q.leg_width
    if pose == "sitting":
        lean = 0.9  # the trunk stands up, the haunch rests on the ground
        cx, cy = 0.0, 0.62 + 0.25 * q.leg
        sx, sy = cx + 0.55 * math.cos(lean), cy + 0.62 * math.sin(lean)
        hx, hy = sx + q.neck[0] * 0.7, sy + q.neck[1] * 0.75
        neck = [limb(sx - 0.05, sy - 0.1, hx - 0.1, hy, q.neck_width)] if q.neck_width else []
        return [
            *_tail(q, -0.62, 0.2),
            limb(0.42, 0.9, 0.46, w, w, "far"),
            ellipse(cx, cy, 0.95, q.body * 0.95, "base", lean),
            ellipse(-0.22, 0.42, 0.52, 0.42, "dark"),
            limb(-0.1, w, 0.25, w, w, "dark"),
            limb(0.56, 0.95, 0.66, w, w),
            *neck,
            *_head(q, hx, hy),
        ]
    up = 0.0
    turn, legs = 0.0, ((-0.72, 0.0), (-0.42, 0.0), (0.42, 0.0), (0.7, 0.0))
    if pose == "jumping":
        turn, up, legs = 0.32, 0.25, ((-0.72, -0.75), (-0.5, -0.55), (0.55, 0.6), (0.75, 0.85))
    cy = q.leg + q.body * 0.85 + up
    c, s = math.cos(turn), math.sin(turn)

    def at(x: float, y: float) -> tuple[float, float]:
        return c * x - s * y, cy + s * x + c * y

    def leg(x: float, swing: float, role: str) -> Polygon:
        x0, y0 = at(x, -q.body * 0.35)
        length = q.leg + q.body * 0.5 - w
        return limb(x0, y0, x0 + length * math.sin(swing), y0 - length * math.cos(swing), w, role)

    hx, hy = at(0.72 + q.neck[0], q.neck[1])
    sx, sy = at(0.72, 0.05)
    neck = [limb(sx, sy, hx - 0.08, hy, q.neck_width)] if q.neck_width else []
    mane = [limb(sx - 0.2, sy + 0.2, hx - 0.22, hy + 0.1, q.neck_width * 0.6, "dark")] if q.neck_width else []
    return [
        *_tail(q, *at(-0.95, q.body * 0.3)),
        leg(*legs[1], "far"),
        leg(*legs[3], "far"),
        *mane,
        ellipse(0, cy, 1.0, q.body, "base", turn),
        leg(*legs[0], "base"),
        leg(*legs[2], "base"),
        *neck,
        *_head(q, hx, hy),
    ]


def _bird(pose: str) -> list[Polygon]:
    lift = {"standing": 0.42, "sitting": 0.0, "jumping": 0.6}[pose]
    y = 0.55 + lift
    legs = (
        []
        if pose == "sitting"
        else [
            limb(x, y - 0.4, x + dx, y - 0.85 + 0.2 * (pose == "jumping"), 0.05, "beak")
            for x, dx in ((-0.1, 0.0), (0.15, 0.06))
        ]
    )
    wing = {
        "standing": [ellipse(-0.15, y + 0.02, 0.48, 0.26, "dark", -0.25)],
        "sitting": [ellipse(-0.2, y - 0.1, 0.52, 0.24, "dark", -0.1)],
        "jumping": [poly([(0.25, y + 0.15), (-0.1, y + 1.2), (-0.65, y + 1.0), (-0.4, y + 0.1)], "dark")],
    }[pose]
    return [
        *legs,
        poly([(-0.5, y + 0.1), (-1.15, y + 0.3), (-1.1, y - 0.05), (-0.5, y - 0.2)], "dark"),
        ellipse(0, y, 0.68, 0.52, "base", 0.25),
        ellipse(0.55, y + 0.55, 0.36, 0.36),
        poly([(0.84, y + 0.68), (1.25, y + 0.5), (0.84, y + 0.4)], "beak"),
        ellipse(0.18, y - 0.18, 0.4, 0.26, "light", 0.3),
        *wing,
        ellipse(0.64, y + 0.62, 0.07, 0.08, "eye"),
    ]


def _fish(pose: str) -> list[Polygon]:
    turn = {"standing": 1.25, "sitting": 0.0, "jumping": 0.6}[
        pose
    ]  # on its tail, at rest on its belly, leaping
    c, s = math.cos(turn), math.sin(turn)
    body: list[Polygon] = [
        poly([(-0.75, 0.0), (-1.4, 0.5), (-1.2, 0.0), (-1.4, -0.5)], "dark"),
        poly([(-0.3, 0.35), (0.1, 0.85), (0.4, 0.38)], "dark"),
        poly([(-0.1, -0.38), (-0.2, -0.72), (0.25, -0.42)], "dark"),
        ellipse(0, 0, 1.0, 0.55),
        ellipse(0.1, -0.18, 0.66, 0.26, "light"),
        limb(-0.1, 0.16, -0.1, -0.16, 0.06, "dark"),
        ellipse(0.58, 0.14, 0.14, 0.14, "white"),
        ellipse(0.62, 0.14, 0.08, 0.08, "eye"),
    ]
    return [((p @ [[c, s], [-s, c]]).astype("float32"), role) for p, role in body]


def _thing(kind: str) -> list[Polygon]:
    if kind == "tree":
        return [
            box(-0.12, 0, 0.12, 0.7, "wood"),
            ellipse(-0.34, 0.8, 0.36, 0.32, "far"),
            ellipse(0.34, 0.8, 0.36, 0.32, "far"),
            ellipse(0, 1.15, 0.44, 0.44),
            ellipse(-0.1, 1.25, 0.2, 0.18, "light"),
        ]
    if kind == "flower":
        petals = [
            ellipse(0.34 * math.cos(a), 1.2 + 0.34 * math.sin(a), 0.26, 0.2, "base", a)
            for a in (k * math.pi / 3 for k in range(6))
        ]
        leaves = [ellipse(-0.22, 0.4, 0.26, 0.1, "stem", -0.5), ellipse(0.22, 0.5, 0.26, 0.1, "stem", 0.5)]
        return [limb(0, 0.05, 0, 1.1, 0.05, "stem"), *leaves, *petals, ellipse(0, 1.2, 0.2, 0.2, "sun")]
    if kind == "house":
        chimney = box(0.3, 1.0, 0.5, 1.5, "dark")
        windows = [box(-0.5, 0.45, -0.22, 0.75, "glass"), box(0.28, 0.45, 0.54, 0.75, "glass")]
        return [
            chimney,
            box(-0.7, 0, 0.7, 0.95),
            poly([(-0.88, 0.9), (0, 1.55), (0.88, 0.9)], "dark"),
            box(-0.14, 0, 0.16, 0.52, "wood"),
            *windows,
        ]
    if kind == "car":
        wheels = [
            p
            for x in (-0.62, 0.62)
            for p in (ellipse(x, 0.24, 0.24, 0.24, "tyre"), ellipse(x, 0.24, 0.1, 0.1, "metal"))
        ]
        cabin = poly([(-0.65, 0.6), (-0.45, 1.06), (0.32, 1.06), (0.62, 0.6)])
        glass = [
            poly([(-0.5, 0.64), (-0.36, 0.95), (-0.08, 0.95), (-0.08, 0.64)], "glass"),
            poly([(0.04, 0.64), (0.04, 0.95), (0.26, 0.95), (0.44, 0.64)], "glass"),
        ]
        hull = poly([(-1.15, 0.25), (-1.15, 0.58), (-0.9, 0.68), (0.7, 0.68), (1.1, 0.55), (1.15, 0.25)])
        return [cabin, hull, *glass, *wheels, ellipse(1.05, 0.48, 0.09, 0.08, "sun")]
    if kind == "boat":
        sails = [
            poly([(0.06, 0.52), (0.06, 1.6), (0.82, 0.52)], "white"),
            poly([(-0.06, 0.52), (-0.06, 1.4), (-0.6, 0.52)], "light"),
        ]
        return [
            box(-0.05, 0.4, 0.05, 1.65, "wood"),
            *sails,
            poly([(-1.0, 0.45), (-0.66, 0.0), (0.66, 0.0), (1.0, 0.45)]),
            box(-0.8, 0.3, 0.86, 0.38, "dark"),
        ]
    if kind == "balloon":
        return [
            limb(0, 0.0, 0.04, 0.6, 0.025, "ink"),
            poly([(-0.1, 0.56), (0, 0.7), (0.1, 0.56)], "dark"),
            ellipse(0, 1.15, 0.46, 0.54),
            ellipse(-0.16, 1.34, 0.1, 0.16, "light", 0.4),
        ]
    if kind == "umbrella":
        a = [math.pi * k / 14 for k in range(15)]
        dome = poly([(0.95 * math.cos(t), 0.75 + 0.72 * math.sin(t)) for t in a])
        panel = poly([(0.32 * math.cos(t), 0.75 + 0.72 * math.sin(t)) for t in a], "light")
        hook = [
            limb(0, 0.12, 0, 0.8, 0.045, "wood"),
            limb(0, 0.12, 0.16, 0.06, 0.045, "wood"),
            limb(0.2, 0.08, 0.2, 0.18, 0.045, "wood"),
        ]
        return [*hook, dome, panel, limb(0, 1.45, 0, 1.55, 0.04, "wood")]
    buttons = [ellipse(0.02, y, 0.05, 0.05, "eye") for y in (0.85, 1.02)]
    arms = [limb(-0.3, 0.95, -0.78, 1.2, 0.035, "wood"), limb(0.3, 0.95, 0.78, 1.15, 0.035, "wood")]
    hat = [box(-0.34, 1.72, 0.34, 1.8, "tyre"), box(-0.22, 1.76, 0.22, 2.1, "tyre")]
    face = [
        ellipse(-0.1, 1.56, 0.05, 0.05, "eye"),
        ellipse(0.12, 1.56, 0.05, 0.05, "eye"),
        poly([(0.02, 1.48), (0.38, 1.42), (0.02, 1.38)], "beak"),
    ]
    return [
        *arms,
        ellipse(0, 0.42, 0.56, 0.46),
        ellipse(0, 0.98, 0.4, 0.38),
        ellipse(0, 1.5, 0.32, 0.32),
        *buttons,
        *hat,
        *face,
    ]


@functools.cache
def sprite(kind: str, pose: str | None) -> Sprite:
    """Returns the sprite of an object; `pose` is None for things."""
    lift = 0.25 if pose == "jumping" else 0.3 if kind == "balloon" else 0.0
    if pose is None:
        return Sprite.make(_thing(kind), lift, thin=("eye", "ink"))
    if kind == "bird":
        return Sprite.make(_bird(pose), lift)
    if kind == "fish":
        return Sprite.make(_fish(pose), lift)
    return Sprite.make(_quadruped(QUADRUPEDS[kind], pose), lift)
