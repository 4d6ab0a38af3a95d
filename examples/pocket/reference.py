"""What the pocket CLIP sees in drawn pictures of the test prompts: the reference of FID and KID on the pocket world.

`python -m examples.pocket.reference` writes `stylus/pocket/reference.npz`. Each prompt is drawn by the renderer twelve
times: the concepts that it asks for, its shapes, its colours in their order; the rest by chance.
"""

import re

import numpy as np

from examples.pocket.renderer import Scene, draw, place, to_image
from examples.pocket.scenes import BACKGROUND_NAMES, SHAPE_NAMES, STYLE_NAMES, SUBJECT_NAMES, pick
from examples.pocket.words import COLOUR_WORDS, COLOURS, SHAPES
from stylus.evaluation.features import open_features
from stylus.evaluation.metrics import moments
from stylus.evaluation.reference import POCKET, Reference
from stylus.pocket import PocketPrompt, prompts

EACH = 12
SEED = 17


def scene_of(prompt: PocketPrompt, rng: np.random.Generator) -> Scene:
    """A scene that the prompt describes."""

    def first(names: tuple[str, ...]) -> str | None:
        return next((concept for concept in prompt.concepts if concept in names), None)

    words = re.findall(r"\w+", prompt.text.lower())
    named = {word: colour for colour in COLOURS for word in (colour, *COLOUR_WORDS.get(colour, []))}
    colours = [named[word] for word in words if word in named]
    shapes = [shape for word in words for shape, nouns in SHAPES.items() if word in nouns]
    things = [thing for thing in (first(SUBJECT_NAMES), *shapes) if thing][:2] or [pick(rng, SHAPE_NAMES)]
    others = [str(colour) for colour in rng.permutation([colour for colour in COLOURS if colour not in colours])]
    chosen = [*colours, *others][: len(things) + 1]
    size = next((word for word in ("small", "large") if word in words and len(things) == 1), None)
    return Scene(place(rng, things, chosen[:-1], size), chosen[-1], first(BACKGROUND_NAMES), first(STYLE_NAMES))


def main() -> None:
    """Draws, looks and writes."""
    rng = np.random.default_rng(SEED)
    pictures = [to_image(draw(scene_of(prompt, rng), rng)) for prompt in prompts() for _ in range(EACH)]
    features = open_features()
    vectors = features.images(pictures)
    Reference("pocket", moments(vectors), vectors).save(POCKET, features)
    print(f"{len(pictures)} pictures, {POCKET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
