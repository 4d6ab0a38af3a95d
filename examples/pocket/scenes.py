"""Random scenes and the captions that people could have written under them."""

from collections.abc import Sequence

from examples.pocket.backgrounds import Random
from examples.pocket.renderer import Scene, place
from examples.pocket.styles import FREE_OF_BACKGROUND
from examples.pocket.words import BACKGROUNDS, COLOUR_WORDS, COLOURS, FILLERS, KINDS, SHAPES, STYLES, SUBJECTS

COLOUR_NAMES = tuple(COLOURS)
SHAPE_NAMES = tuple(SHAPES)
SUBJECT_NAMES = tuple(SUBJECTS)
BACKGROUND_NAMES = tuple(BACKGROUNDS)
STYLE_NAMES = tuple(STYLES)
CONCEPT_WORDS = tuple(
    phrase for kind in KINDS.values() for common, rare in kind.values() for phrase in (*common, *rare)
)


def pick(rng: Random, options: Sequence[str]) -> str:
    """One of the options."""
    return options[int(rng.integers(0, len(options)))]


def scene(
    rng: Random,
    shape: str | None = None,
    pattern: str | None = None,
    style: str | None = None,
    pair: float = 0.25,
) -> tuple[Scene, str | None]:
    """A random scene around the given concepts, and its size word if it has one."""
    first = shape or pick(rng, SHAPE_NAMES)
    shapes = [first]
    if rng.random() < pair:
        shapes.append(pick(rng, SHAPE_NAMES))
        if rng.random() < 0.5:
            shapes.reverse()
    colours = [str(c) for c in rng.choice(COLOUR_NAMES, len(shapes) + 1, replace=False)]
    size = None
    if len(shapes) == 1 and rng.random() < 0.25:
        size = "small" if rng.random() < 0.5 else "large"
    return Scene(place(rng, shapes, colours[:-1], size), colours[-1], pattern, style), size


def any_scene(rng: Random, pair: float = 0.2) -> Scene:
    """A scene with every kind of concept, for the codec, the pocket CLIP and the judge: never for the base."""
    shape = pick(rng, SUBJECT_NAMES) if rng.random() < 0.6 else None
    pattern = pick(rng, BACKGROUND_NAMES) if rng.random() < 0.5 else None
    style = pick(rng, STYLE_NAMES) if rng.random() < 0.5 else None
    if style in FREE_OF_BACKGROUND:
        pattern = None
    return scene(rng, shape, pattern, style, pair)[0]


def colour_word(rng: Random, colour: str) -> str:
    """The colour, seldom by another name."""
    others = COLOUR_WORDS.get(colour, [])
    return pick(rng, others) if others and rng.random() < 0.2 else colour


def noun(rng: Random, shape: str, rare: float = 0.0) -> str:
    """A word for the shape; with probability `rare` one that no card uses."""
    if shape in SHAPES:
        return pick(rng, SHAPES[shape])
    common, paraphrases = SUBJECTS[shape]
    return pick(rng, paraphrases if rng.random() < rare else common)


def phrase(rng: Random, concept: str, rare: float = 0.0) -> str:
    """A word for a style or a background."""
    common, paraphrases = STYLES.get(concept) or BACKGROUNDS[concept]
    return pick(rng, paraphrases if rng.random() < rare else common)


def article(word: str) -> str:
    """The word with its article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def sprinkle(rng: Random, text: str, odds: float = 0.35) -> str:
    """Put words without effect around and into the caption: the base must learn to ignore what it does not know."""
    if rng.random() > odds:
        return text
    words = text.split()
    for _ in range(int(rng.integers(1, 4))):
        luck = rng.random()
        if luck < 0.62:
            extra = pick(rng, FILLERS)
        elif luck < 0.85:
            extra = pick(rng, CONCEPT_WORDS)
        else:
            extra = "".join(pick(rng, "abcdefghijklmnopqrstuvwxyz") for _ in range(int(rng.integers(2, 7))))
        if rng.random() < 0.5:
            words.append(extra if rng.random() < 0.5 else ", " + extra)
        else:
            words.insert(int(rng.integers(0, len(words) + 1)), extra)
    return " ".join(words).replace(" ,", ",")


def caption(rng: Random, scene: Scene, size: str | None = None, rare: float = 0.0) -> str:
    """What one could write under the scene; parts are left out at random."""
    parts = []
    for thing in scene.things:
        words = [size] if size and rng.random() < 0.9 else []
        if rng.random() < 0.9:
            words.append(colour_word(rng, thing.colour))
        words.append(noun(rng, thing.shape, rare))
        parts.append(article(" ".join(words)) if rng.random() < 0.8 else " ".join(words))
    if len(parts) == 1:
        text = parts[0]
    elif rng.random() < 0.25:
        text = f"{parts[1]} to the right of {parts[0]}"
    else:
        text = parts[0] + pick(rng, (" and ", " next to ", " beside ", " left of ", " with ", ", ")) + parts[1]
    if scene.pattern:
        word = phrase(rng, scene.pattern, rare)
        text = pick(
            rng,
            (
                "{t} on a {p} background",
                "{t} in front of {p}",
                "{t}, {p}",
                "{t}, {p} background",
                "{p}, {t}",
                "{t} over {p}",
            ),
        ).format(t=text, p=word)
    elif rng.random() < 0.86:
        ground = colour_word(rng, scene.ground)
        text = pick(
            rng,
            (
                "{t} on {a} background",
                "{t}, {g} background",
                "{t} on {g}",
                "{t} over {a} backdrop",
                "{g} background, {t}",
            ),
        ).format(t=text, a=article(ground), g=ground)
    if scene.style:
        word = phrase(rng, scene.style, rare)
        text = pick(rng, ("{s} of {t}", "{t} in {s} style", "{s}, {t}", "{t}, {s}", "{s} style {t}")).format(
            s=word, t=text
        )
    opening = ("", "", "", "a picture of ", "an image of ", "a photo of ", "drawing of ")
    return pick(rng, opening) + text
