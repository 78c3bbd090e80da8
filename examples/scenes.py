"""The built-in data set: scenes rendered with numpy, whose captions differ in single words.

Every scene has four *siblings* in its own split, made by exchanging colours, sizes or positions or
by changing a shape. A caption of one sibling is a hard negative of the others: it shares almost
every word and is false. Captions name every attribute, and no two scenes state the same facts.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dataset import CAPTIONS_PER_IMAGE, RetrievalData, Split

IMAGE_SIZE = 32
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.15, 0.15),
    "green": (0.15, 0.65, 0.25),
    "blue": (0.15, 0.35, 0.90),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.58, 0.20, 0.75),
    "orange": (0.98, 0.55, 0.10),
    "black": (0.08, 0.08, 0.08),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
RADII = {"small": 3.2, "large": 6.2}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
INVERSES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
# Unit step (x to the right, y downwards) from the object of a relation to its subject.
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SUPERSAMPLING = 3  # 9 samples per pixel: smooth edges distinguish a small circle from a square


@dataclass(frozen=True)
class Thing:
    """One drawn shape."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """Two or three things; the first one has the given relation to each of the others."""

    things: tuple[Thing, ...]
    relations: tuple[str, ...]  # relations[k]: things[0] is `relation` things[k + 1]

    def key(self) -> frozenset[tuple[Thing, str, Thing]]:
        """Return the facts of the scene, which do not depend on the side that describes them."""
        facts = zip(self.relations, self.things[1:], strict=True)
        first = self.things[0]
        return frozenset(
            (first, relation, other)
            if relation in ("left of", "above")
            else (other, INVERSES[relation], first)
            for relation, other in facts
        )


def draw_scene(scene: Scene, generator: np.random.Generator) -> NDArray[np.float32]:
    """Render a scene with random background, positions, tints and pixel noise.

    Args:
        scene: the scene.
        generator: source of everything that the captions do not mention.

    Returns:
        Pixels in [0, 1], ``[3, 32, 32]`` float32.
    """
    background = generator.uniform(0.78, 1.0) + generator.uniform(-0.04, 0.04, 3)
    image = np.broadcast_to(background[:, None, None], (3, IMAGE_SIZE, IMAGE_SIZE)).copy()
    for thing, centre in zip(scene.things, place_things(scene, generator), strict=True):
        radius = RADII[thing.size] * generator.uniform(0.92, 1.08)
        tint = np.clip(np.array(COLOURS[thing.colour]) + generator.uniform(-0.06, 0.06, 3), 0, 1)
        cover = _coverage(thing.shape, centre, radius)
        image = image * (1 - cover) + tint[:, None, None] * cover
    image += generator.normal(0, 0.02, image.shape)
    return np.clip(image, 0, 1).astype(np.float32)


def place_things(scene: Scene, generator: np.random.Generator) -> list[tuple[float, float]]:
    """Choose a centre (x, y) in pixels for every thing, so that each relation is clearly true.

    Related things are 15 to 17 pixels apart along the axis of the relation, and at most 2 across.
    """
    steps = [DIRECTIONS[relation] for relation in scene.relations]
    # The first thing is opposite the others: 8 pixels off the centre on each used axis.
    offset = np.sum(steps, axis=0) * 8.0
    first = IMAGE_SIZE / 2 + offset + generator.uniform(-1, 1, 2)
    centres = [first]
    for step in steps:
        along = generator.uniform(15, 17)
        across = generator.uniform(-2, 2)
        direction = np.array(step, dtype=float)
        centres.append(first - along * direction + across * direction[::-1])
    return [(float(x), float(y)) for x, y in centres]


def describe_scene(scene: Scene, generator: np.random.Generator) -> list[str]:
    """Write five true captions, from either side and with varying words.

    Args:
        scene: the scene.
        generator: chooses synonyms.

    Returns:
        Five captions. Each names all sizes, colours, shapes and relations.
    """
    captions = []
    for template in range(CAPTIONS_PER_IMAGE):
        told = _from_other_side(scene) if template in (1, 3) else _clauses(scene)
        names = [_name(thing, generator) for thing, _ in told]
        words = [str(generator.choice(RELATION_WORDS[relation])) for _, relation in told[1:]]
        captions.append(_sentence(template, names, words, chained=template in (1, 3)))
    return captions


def siblings(scene: Scene, generator: np.random.Generator) -> list[Scene]:
    """Return four scenes that differ from this one in one exchange or one word.

    They are: colours exchanged, sizes exchanged, the first relation reversed, one shape changed.
    Exchanging equal colours or sizes would change nothing; one of the two is replaced instead.
    """
    first, second, *rest = scene.things

    def with_pair(new_first: Thing, new_second: Thing) -> Scene:
        return replace(scene, things=(new_first, new_second, *rest))

    if first.colour != second.colour:
        colours = (second.colour, first.colour)
    else:
        colours = (_another(first.colour, tuple(COLOURS), generator), second.colour)
    if first.size != second.size:
        sizes = (second.size, first.size)
    else:
        sizes = (_another(first.size, tuple(RADII), generator), second.size)
    shape = _another(first.shape, SHAPES, generator)
    reversed_relations = (INVERSES[scene.relations[0]], *scene.relations[1:])
    return [
        with_pair(replace(first, colour=colours[0]), replace(second, colour=colours[1])),
        with_pair(replace(first, size=sizes[0]), replace(second, size=sizes[1])),
        replace(scene, relations=reversed_relations),
        with_pair(replace(first, shape=shape), second),
    ]


def make_scenes(counts: tuple[int, int, int], seed: int) -> tuple[list[Scene], ...]:
    """Generate the scenes of the three splits; no scene occurs twice, within or across splits.

    Args:
        counts: images in train, dev and test; multiples of 5 (a scene and its four siblings).
        seed: equal seeds give equal scenes.

    Returns:
        Three lists of scenes. Scenes ``5 k .. 5 k + 4`` are siblings.

    Raises:
        ValueError: a count is not a positive multiple of 5.
    """
    if any(count < 5 or count % 5 for count in counts):
        raise ValueError(
            f"make_scenes: counts {counts} must be positive multiples of 5 "
            "(a scene and its four siblings)"
        )
    generator = np.random.default_rng(seed)
    seen: set[frozenset[tuple[Thing, str, Thing]]] = set()
    splits: list[list[Scene]] = []
    for count in counts:
        scenes: list[Scene] = []
        while len(scenes) < count:
            scene = _random_scene(generator)
            family = [scene, *siblings(scene, generator)]
            keys = {member.key() for member in family}
            # "A red circle left of a red circle" would be true with its things exchanged.
            distinct = all(len(set(member.things)) == len(member.things) for member in family)
            if distinct and len(keys) == len(family) and not keys & seen:
                seen |= keys
                scenes += family
        splits.append(scenes)
    return tuple(splits)


def load_scenes(
    *, train: int = 2000, dev: int = 300, test: int = 300, seed: int = 2024
) -> RetrievalData:
    """Build the built-in data set.

    Args:
        train: number of training images, a multiple of 5.
        dev: number of development images, a multiple of 5.
        test: number of test images, a multiple of 5.
        seed: equal seeds give equal bytes.

    Returns:
        Pixels ``[N, 3, 32, 32]`` and five captions per image, in three disjoint splits.

    Raises:
        ValueError: a count is not a positive multiple of 5.
    """
    splits = []
    for number, scenes in enumerate(make_scenes((train, dev, test), seed)):
        generator = np.random.default_rng([seed, number])
        images = np.stack([draw_scene(scene, generator) for scene in scenes])
        described = [describe_scene(scene, generator) for scene in scenes]
        captions = [caption for five in described for caption in five]
        splits.append(Split(images, captions, [five[0] for five in described]))
    return RetrievalData(*splits)


def _random_scene(generator: np.random.Generator) -> Scene:
    things = tuple(
        Thing(
            str(generator.choice(tuple(RADII))),
            str(generator.choice(tuple(COLOURS))),
            str(generator.choice(SHAPES)),
        )
        for _ in range(3 if generator.random() < 0.25 else 2)
    )
    horizontal = str(generator.choice(("left of", "right of")))
    vertical = str(generator.choice(("above", "below")))
    if len(things) == 3:
        return Scene(things, (horizontal, vertical))
    return Scene(things, (str(generator.choice((horizontal, vertical))),))


def _coverage(shape: str, centre: tuple[float, float], radius: float) -> NDArray[np.float64]:
    """Return the share of every pixel that the shape covers, ``[32, 32]`` in [0, 1]."""
    samples = (np.arange(IMAGE_SIZE * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    x = (samples[None, :] - centre[0]) / radius
    y = (samples[:, None] - centre[1]) / radius
    inside = {
        "circle": x**2 + y**2 <= 1,
        "square": np.maximum(abs(x), abs(y)) <= 0.86,
        "triangle": (y <= 0.9) & (abs(x) <= 0.55 * (y + 1)),
        "diamond": abs(x) + abs(y) <= 1.1,
        "cross": (np.minimum(abs(x), abs(y)) <= 0.34) & (np.maximum(abs(x), abs(y)) <= 1),
    }[shape]
    blocks = (IMAGE_SIZE, SUPERSAMPLING, IMAGE_SIZE, SUPERSAMPLING)
    return inside.reshape(blocks).mean(axis=(1, 3))


def _clauses(scene: Scene) -> list[tuple[Thing, str]]:
    """Return every thing with the relation of the first thing to it."""
    return list(zip(scene.things, ("", *scene.relations), strict=True))


def _from_other_side(scene: Scene) -> list[tuple[Thing, str]]:
    """Return the second thing first, with its inverse relation to the first one, then the rest."""
    first, second, *rest = scene.things
    told = [(second, ""), (first, INVERSES[scene.relations[0]])]
    return told + list(zip(rest, scene.relations[1:], strict=True))


def _name(thing: Thing, generator: np.random.Generator) -> str:
    return f"{generator.choice(SIZE_WORDS[thing.size])} {thing.colour} {thing.shape}"


def _sentence(template: int, names: list[str], relations: list[str], *, chained: bool) -> str:
    """Join names and relations; ``chained`` attaches a third thing to the second one."""
    links = ["", " which is "] if chained else ["", " and "]
    opening = ("a", "a", "there is a", "the picture shows a", "one")[template]
    article = "one" if template == 4 else "a"
    parts = [f"{opening} {names[0]} "]
    for link, relation, name in zip(links, relations, names[1:], strict=False):
        parts.append(f"{link}{relation} {article} {name}")
    return "".join(parts)


def _another(value: str, choices: tuple[str, ...], generator: np.random.Generator) -> str:
    return str(generator.choice([choice for choice in choices if choice != value]))
