"""The built-in data set: what its captions say is what its pictures show."""

import re

import numpy as np
import pytest

from scenes import (
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    Scene,
    Thing,
    describe_scene,
    draw_scene,
    load_scenes,
    make_scenes,
    place_things,
    siblings,
)

COUNTS = (40, 20, 20)
SMALL = {"train": 40, "dev": 20, "test": 20}
SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}
THING = re.compile(rf"({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
SIDES = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "over": (0, -1)} | {
    "below": (0, 1),
    "under": (0, 1),
}


def read_caption(caption: str) -> list[tuple[Thing, str, Thing]]:
    """Parse a caption without the module's own tables: (subject, side word, object) facts."""
    matches = list(THING.finditer(caption))
    things = [Thing(SIZES[m[1]], m[2], m[3]) for m in matches]
    between = [
        caption[left.end() : right.start()]
        for left, right in zip(matches, matches[1:], strict=False)
    ]
    sides = [next(word for word in SIDES if word in text.split()) for text in between]
    # "A left of B and above C" tells of A twice; "A left of B which is above C" goes on with B.
    subjects = [0] + [1 if "which" in text else 0 for text in between[1:]]
    return [
        (things[subject], side, things[number])
        for number, (subject, side) in enumerate(zip(subjects, sides, strict=True), start=1)
    ]


def find_region(image: np.ndarray, colour: str) -> tuple[int, np.ndarray]:
    """Count the pixels of a colour and average their places (x, y)."""
    distances = np.stack(
        [np.abs(image - np.array(rgb)[:, None, None]).max(axis=0) for rgb in COLOURS.values()]
    )
    mine = list(COLOURS).index(colour)
    # Tint and noise stay below 0.15; half-covered pixels at the edges lie beyond.
    rows, columns = np.nonzero((distances.argmin(axis=0) == mine) & (distances[mine] < 0.15))
    return len(rows), np.array([columns.mean() + 0.5, rows.mean() + 0.5])


def plain_words(scene: Scene) -> list[str]:
    """The scene's words without synonyms, told from its first thing."""
    attributes = [word for each in scene.things for word in (each.size, each.colour, each.shape)]
    return attributes + list(scene.relations)


def fact_key(facts: list[tuple[Thing, str, Thing]]) -> frozenset[tuple[Thing, tuple, Thing]]:
    """Facts with the side as a direction, from the thing further left or up."""
    told = [(subject, SIDES[side], other) for subject, side, other in facts]
    return frozenset((a, d, b) if sum(d) < 0 else (b, (-d[0], -d[1]), a) for a, d, b in told)


def test_equal_seeds_give_equal_bytes_and_others_do_not():
    first, again, other = (load_scenes(**SMALL, seed=seed) for seed in (1, 1, 2))
    for name in SMALL:
        mine, same = getattr(first, name), getattr(again, name)
        assert mine.images.tobytes() == same.images.tobytes()
        assert mine.captions == same.captions
    assert first.train.captions != other.train.captions


def test_splits_have_the_form_that_training_expects():
    data = load_scenes(**SMALL)
    for name, count in SMALL.items():
        split = getattr(data, name)
        assert split.images.shape == (count, 3, IMAGE_SIZE, IMAGE_SIZE)
        assert split.images.dtype == np.float32
        assert split.images.min() >= 0 and split.images.max() <= 1
        assert len(split.captions) == 5 * count
        assert len(split) == len(split.names) == count


def test_no_scene_occurs_twice():
    keys = [scene.key() for scenes in make_scenes((500, 100, 100), 3) for scene in scenes]
    assert len(set(keys)) == len(keys) == 700


def test_a_scene_told_from_its_other_side_is_the_same_scene():
    left, right = Thing("small", "red", "circle"), Thing("large", "blue", "square")
    assert Scene((left, right), ("left of",)).key() == Scene((right, left), ("right of",)).key()
    assert Scene((left, right), ("left of",)).key() != Scene((left, right), ("right of",)).key()


def test_captions_are_true_of_the_places():
    generator = np.random.default_rng(0)
    for scene in sum(make_scenes(COUNTS, 5), []):
        places = dict(zip(scene.things, place_things(scene, generator), strict=True))
        for caption in describe_scene(scene, generator):
            facts = read_caption(caption)
            assert {thing for fact in facts for thing in (fact[0], fact[2])} == set(scene.things)
            for subject, side, other in facts:
                offset = np.subtract(places[subject], places[other])
                direction = np.array(SIDES[side])
                assert offset @ direction >= 15, caption
                assert abs(offset @ direction[::-1]) <= 2, caption


def test_captions_are_true_of_the_pixels():
    """Places and sizes are measured in the rendered picture, by its colours alone."""
    generator = np.random.default_rng(1)
    checked = 0
    for scene in sum(make_scenes((200, 50, 50), 6), []):
        if len({thing.colour for thing in scene.things}) < len(scene.things):
            continue  # equal colours: one region would cover two things
        regions = {
            thing: find_region(draw, thing.colour)
            for draw in [draw_scene(scene, generator)]
            for thing in scene.things
        }
        for thing, (area, _) in regions.items():
            # Solid pixels: a small shape has at most 42, a large one at least 55.
            assert (area > 48) == (thing.size == "large"), (thing, area)
        for caption in describe_scene(scene, generator):
            for subject, side, other in read_caption(caption):
                offset = regions[subject][1] - regions[other][1]
                assert offset @ np.array(SIDES[side]) > 10, caption
                checked += 1
    assert checked > 500


def test_a_caption_of_a_scene_is_false_of_its_siblings_and_shares_their_words():
    generator = np.random.default_rng(2)
    for scenes in make_scenes(COUNTS, 7):
        for start in range(0, len(scenes), 5):
            family = scenes[start : start + 5]
            keys = [fact_key(read_caption(describe_scene(each, generator)[0])) for each in family]
            assert len(set(keys)) == 5
            words = [set(plain_words(each)) for each in family]
            for other in words[1:]:
                # One word of an attribute or of a relation may be new on each side, no more.
                assert len(words[0] ^ other) <= 2


def test_siblings_change_one_thing_each():
    generator = np.random.default_rng(3)
    red, blue = Thing("small", "red", "circle"), Thing("large", "blue", "square")
    colours, sizes, places, shape = siblings(Scene((red, blue), ("above",)), generator)
    assert [thing.colour for thing in colours.things] == ["blue", "red"]
    assert [thing.size for thing in sizes.things] == ["large", "small"]
    assert places == Scene((red, blue), ("below",))
    assert shape.things[0].shape != "circle" and shape.things[1] == blue


def test_equal_colours_and_sizes_are_replaced_instead_of_exchanged():
    generator = np.random.default_rng(4)
    things = (Thing("small", "red", "circle"), Thing("small", "red", "square"))
    colours, sizes, *_ = siblings(Scene(things, ("above",)), generator)
    assert colours.things[0].colour != "red" and colours.things[1].colour == "red"
    assert [thing.size for thing in sizes.things] == ["large", "small"]


@pytest.mark.parametrize("counts", [(0, 5, 5), (5, 7, 5), (5, 5, -5)])
def test_counts_that_make_no_whole_families_are_refused(counts):
    with pytest.raises(ValueError, match="must be positive multiples of 5"):
        make_scenes(counts, 0)
