"""Scenes and their captions, in English and Simplified Chinese.

A caption is a pure function of (scene, seed): the seed chooses the language, the phrasing and the attributes
that are left out. A hard negative is therefore the same sentence about a scene in which one named attribute
differs.
"""

import dataclasses
import random

ANIMALS = ("bear", "cat", "dog", "rabbit", "bird", "fish", "elephant", "horse")
THINGS = ("tree", "flower", "house", "car", "boat", "balloon", "umbrella", "snowman")
OBJECTS = ANIMALS + THINGS
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SIZES = ("big", "small")
PLACES = ("snow", "grass", "desert", "beach", "sea", "forest", "city", "night")
POSES = ("standing", "sitting", "jumping")
SIDES = ("left", "right")
LANGUAGES = ("en", "zh")

ZH_OBJECT = {  # measure word, noun
    "bear": ("只", "熊"),
    "cat": ("只", "猫"),
    "dog": ("只", "狗"),
    "rabbit": ("只", "兔子"),
    "bird": ("只", "鸟"),
    "fish": ("条", "鱼"),
    "elephant": ("头", "象"),
    "horse": ("匹", "马"),
    "tree": ("棵", "树"),
    "flower": ("朵", "花"),
    "house": ("座", "房子"),
    "car": ("辆", "汽车"),
    "boat": ("艘", "船"),
    "balloon": ("个", "气球"),
    "umbrella": ("把", "雨伞"),
    "snowman": ("个", "雪人"),
}
ZH_COLOUR: dict[str, str] = dict(zip(COLOURS, "红橙黄绿蓝紫粉棕黑白", strict=True))
ZH_SIZE = {"big": "大", "small": "小"}
ZH_PLACE = {
    "snow": "雪地里",
    "grass": "草地上",
    "desert": "沙漠里",
    "beach": "沙滩上",
    "sea": "海面上",
    "forest": "森林里",
    "city": "城市里",
    "night": "夜空下",
}
ZH_POSE = {"standing": "站", "sitting": "坐", "jumping": "跳"}
EN_PLACE = {
    "snow": "in the snow",
    "grass": "on the grass",
    "desert": "in the desert",
    "beach": "on the beach",
    "sea": "on the sea",
    "forest": "in the forest",
    "city": "in the city",
    "night": "at night",
}
EN_GROUND = {
    "snow": "a snowy field",
    "grass": "a green meadow",
    "desert": "a desert",
    "beach": "a sandy beach",
    "sea": "the open sea",
    "forest": "a forest",
    "city": "a city street",
    "night": "a starry night",
}
EN_SIZE = {"big": ("big", "large"), "small": ("small", "little")}


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object of a scene; `pose` is None for things."""

    kind: str
    colour: str
    size: str
    pose: str | None


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two objects in a place; of two, `side` is where the first stands relative to the second."""

    place: str
    things: tuple[Thing, ...]
    side: str | None = None


@dataclasses.dataclass(frozen=True)
class Caption:
    """A sentence, its language, and the attributes it names: "place", "side", "0.kind", "1.colour", ..."""

    text: str
    language: str
    mentions: frozenset[str]


def holds(scene: Scene, attribute: str, other: Scene) -> bool:
    """Returns whether two scenes of equally many objects agree on an attribute of `Caption.mentions`."""
    if attribute in ("place", "side"):
        return getattr(scene, attribute) == getattr(other, attribute)
    i, field = attribute.split(".")
    return getattr(scene.things[int(i)], field) == getattr(other.things[int(i)], field)


def caption(scene: Scene, seed: int, language: str | None = None) -> Caption:
    """Returns the sentence that a seed stands for; `language` is en, zh, or None to let the seed choose."""
    rng = random.Random(seed)
    drawn = rng.choice(LANGUAGES)
    language = language or drawn
    mentions: set[str] = set()
    say = {
        field: rng.random() < p
        for field, p in (("place", 0.92), ("colour", 0.88), ("size", 0.8), ("pose", 0.75))
    }
    template = rng.random()
    text = (_english if language == "en" else _chinese)(scene, rng, say, template, mentions)
    return Caption(text, language, frozenset(mentions))


def _mention(thing: Thing, i: int, say: dict[str, bool], mentions: set[str]) -> tuple[str | None, str | None]:
    mentions.add(f"{i}.kind")
    colour, size = (thing.colour if say["colour"] else None), (thing.size if say["size"] else None)
    mentions.update(f"{i}.{field}" for field, value in (("colour", colour), ("size", size)) if value)
    return colour, size


def _pose(thing: Thing, i: int, say: dict[str, bool], mentions: set[str]) -> str | None:
    if thing.pose and say["pose"]:
        mentions.add(f"{i}.pose")
        return thing.pose
    return None


def _english_noun(thing: Thing, i: int, rng: random.Random, say: dict[str, bool], mentions: set[str]) -> str:
    colour, size = _mention(thing, i, say, mentions)
    word = rng.choice((0, 0, 1))
    words = " ".join(w for w in (EN_SIZE[size][word] if size else None, colour, thing.kind) if w)
    return ("an " if words[0] in "aeiou" else "a ") + words


def _english(
    scene: Scene, rng: random.Random, say: dict[str, bool], template: float, mentions: set[str]
) -> str:
    where = f" {EN_PLACE[scene.place]}" if say["place"] else ""
    if say["place"]:
        mentions.add("place")
    nouns = [_english_noun(thing, i, rng, say, mentions) for i, thing in enumerate(scene.things)]
    if len(nouns) == 2:
        mentions.add("side")
        other = "right" if scene.side == "left" else "left"
        if template < 0.35:
            return f"{nouns[0]} to the {scene.side} of {nouns[1]}{where}"
        if template < 0.6:
            return f"{nouns[1]} to the {other} of {nouns[0]}{where}"
        if template < 0.8:
            return f"on the {scene.side} {nouns[0]}, on the {other} {nouns[1]}{',' * bool(where)}{where}"
        return f"{nouns[0]} is {scene.side} of {nouns[1]}{where}"
    pose = _pose(scene.things[0], 0, say, mentions)
    doing = f" {pose}" if pose else ""
    if template < 0.4:
        return f"{nouns[0]}{doing}{where}"
    if template < 0.55:
        return f"there is {nouns[0]}{doing}{where}"
    if template < 0.68:
        return f"a picture of {nouns[0]}{doing}{where}"
    if template < 0.8 and where:
        return f"{where[1:]}, {nouns[0]}{f' is{doing}' if doing else ''}"
    if template < 0.9 and where:
        return f"{EN_GROUND[scene.place]} with {nouns[0]}{doing}"
    return f"{nouns[0]}{f' is{doing}' if doing else ''}{where}"


def _chinese_noun(
    thing: Thing, i: int, rng: random.Random, say: dict[str, bool], mentions: set[str], article: bool = True
) -> str:
    colour, size = _mention(thing, i, say, mentions)
    measure, noun = ZH_OBJECT[thing.kind]
    colour = ZH_COLOUR[colour] + rng.choice(("色的", "色的", "色")) if colour else ""
    size = ZH_SIZE[size] if size else ""
    if colour and size and rng.random() < 0.2:
        body = f"{size}{colour}{noun}" if colour.endswith("色") else f"{size}的{colour[:-1]}{noun}"
    else:
        body = f"{colour}{size}{noun}"
    return f"一{measure}{body}" if article else body


def _chinese(
    scene: Scene, rng: random.Random, say: dict[str, bool], template: float, mentions: set[str]
) -> str:
    where = ZH_PLACE[scene.place] if say["place"] else ""
    if where:
        mentions.add("place")
    nouns = [_chinese_noun(thing, i, rng, say, mentions) for i, thing in enumerate(scene.things)]
    if len(nouns) == 2:
        mentions.add("side")
        here, there = ("左", "右") if scene.side == "left" else ("右", "左")
        if template < 0.4:
            return f"{where}{'，' * bool(where)}{nouns[0]}在{nouns[1]}的{here}边"
        if template < 0.7:
            return f"{where}{nouns[1]}的{here}边有{nouns[0]}"
        return f"{where}{here}边是{nouns[0]}，{there}边是{nouns[1]}"
    pose = _pose(scene.things[0], 0, say, mentions)
    verb = ZH_POSE[pose] if pose else ""
    if not where:
        if not verb:
            return rng.choice((nouns[0], f"图中有{nouns[0]}", f"{nouns[0]}的图画"))
        return rng.choice((f"{nouns[0]}在{verb}", f"{nouns[0]}{verb}着", f"图中有{nouns[0]}{verb}着"))
    if template < 0.4:
        return f"{nouns[0]}{verb}在{where}"
    if template < 0.7:
        return f"{where}{verb}着{nouns[0]}" if verb else f"{where}有{nouns[0]}"
    if template < 0.85:
        return f"{nouns[0]}在{where}{verb + '着' if verb else ''}"
    return f"{where}，{nouns[0]}{'正' * bool(verb)}{verb}{'着' * bool(verb)}"
