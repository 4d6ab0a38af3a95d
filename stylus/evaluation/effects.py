"""What an adapter does to pictures, as numbers (pure; CARLoS, arXiv 2512.08826), and what these say beside those of the
other adapters.

All vectors are of one model that sees pictures and reads texts. Three sets of pictures are compared, of the same seeds:
*plain* (the checkpoint's, of plain prompts), *worded* (the checkpoint's, the adapter's trigger words added) and *with*
(the same words, and the adapter). With against worded is what the weights do; with against plain is what choosing the
adapter does, and that is what its card speaks of. CARLoS has one difference and measures no cards against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Float, Float32
from PIL import Image

from stylus.records import BaseModelFamily

VERSION = 1
"""Of what is measured and how: another number measures everything anew."""
IMAGES = 4
"""Of each prompt."""

Vectors = Float32[np.ndarray, "prompts images d"]


@dataclass(frozen=True)
class Probe:
    """A prompt that every adapter of a base model is tried on."""

    plain: str
    worded: str
    """The same with `{words}` in it: trigger words join a scene, or are what is asked for."""
    subject: str | None = None
    """What the picture must still show, whatever the adapter adds."""

    def text(self, words: Sequence[str]) -> str:
        """Without words of its own an adapter gets the plain prompt."""
        return self.worded.format(words=", ".join(words)) if words else self.plain


_EVERYDAY = (
    Probe("a photo of a woman in a street", "a photo of a woman in a street, {words}", "a woman"),
    Probe("a dog on a beach", "{words}, a dog on a beach", "a dog"),
    Probe("a picture of something", "a picture of {words}"),
    Probe("an image", "{words}"),
)
_SHAPES = (
    Probe("a red circle on a blue background", "a red circle on a blue background, {words}", "a red circle"),
    Probe("a yellow square", "{words}, a yellow square", "a yellow square"),
    Probe("a green thing on a pink background", "a green {words} on a pink background"),
    Probe("an orange thing on a gray background", "an orange {words} on a gray background"),
)
PROBES: Mapping[BaseModelFamily, tuple[Probe, ...]] = {
    family: _SHAPES if family is BaseModelFamily.POCKET else _EVERYDAY for family in BaseModelFamily
}


OTHER_SUBJECTS: Mapping[BaseModelFamily, tuple[str, ...]] = {
    family: ("a blue triangle", "a green diamond", "a purple ring", "a white hexagon", "a picture")
    if family is BaseModelFamily.POCKET
    else ("a cat", "a car", "a house", "a landscape", "a picture")
    for family in BaseModelFamily
}
"""What a picture could show instead of its subject."""


@dataclass(frozen=True)
class Effect:
    """What an adapter does."""

    direction: Float32[np.ndarray, " d"]
    """From plain to with, on average, of length 1; zeros where nothing could be compared."""
    strength: float
    """Length of the mean shift from worded to with; 1 is the spread of the checkpoint's pictures over all prompts."""
    consistency: float
    """Mean cosine of the single shifts with the mean one, in [-1, 1]."""
    strangeness: float
    """How far its pictures lie from the nearest of the checkpoint's; 1 is how far those lie from each other."""
    broken: float
    """Share of its pictures that broke down, are near-constant or burnt, in [0, 1]."""
    kept: float
    """Share of the pictures with the prompt's subject that still show it with the adapter, in [0, 1]."""


def effect(plain: Vectors, worded: Vectors, with_it: Vectors, broken: float, kept: float) -> Effect:
    """From vectors of length 1, of the same prompts and seeds in all three sets; at least two seeds."""
    shifts = (with_it - worded).reshape(-1, worded.shape[-1])
    mean = shifts.mean(0)
    moved = np.linalg.norm(shifts, axis=1) > 0
    return Effect(
        direction=_unit((with_it - plain).reshape(-1, plain.shape[-1]).mean(0)),
        strength=float(np.linalg.norm(mean)) / _spread(worded),
        consistency=float((_units(shifts[moved]) @ _unit(mean)).mean()) if moved.any() else 0.0,
        strangeness=strangeness(with_it, worded),
        broken=broken,
        kept=kept,
    )


_LEAST = 1e-6
"""Of a distance that something is divided by."""


def _spread(vectors: Vectors) -> float:
    """Root of the mean squared distance of pictures to their mean, over all prompts."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    return max(float(np.sqrt(((flat - flat.mean(0)) ** 2).sum(-1).mean())), _LEAST)


def strangeness(with_it: Vectors, without: Vectors) -> float:
    """Median distance of the pictures to the nearest one without the adapter, over the median distance of those to the
    nearest of another prompt: at 1 the adapter draws something as unlike the checkpoint's pictures as these are unlike
    each other."""
    prompts, images, _ = without.shape
    base = without.reshape(prompts * images, -1)
    own = _distances(base, base)
    prompt = np.repeat(np.arange(prompts), images)
    own[prompt[:, None] == prompt] = np.inf
    apart = float(np.median(own.min(1)))
    return float(np.median(_distances(with_it.reshape(-1, base.shape[1]), base).min(1))) / max(apart, _LEAST)


def shows(pictures: Float32[np.ndarray, "n d"], subjects: Float32[np.ndarray, "m d"]) -> Bool[np.ndarray, " n"]:
    """Which pictures are nearer to the text of the first subject than to any other."""
    found: Bool[np.ndarray, " n"] = (pictures @ subjects.T).argmax(1) == 0
    return found


def kept(without: Bool[np.ndarray, " n"], with_it: Bool[np.ndarray, " n"]) -> float:
    """Share of the pictures that show their subject without the adapter which do with it; 1 where none does without."""
    return float(with_it[without].mean()) if without.any() else 1.0


FLAT = 4.0
"""Standard deviation of a picture's values, of 255, below which it shows nothing."""
CLIPPED = 0.25
"""Share of values at either end of the range, beyond that of the same picture without the adapter, that burns it."""


def is_broken(picture: Image.Image, without: Image.Image) -> bool:
    """Whether a picture shows nothing, or is burnt, which the same one without the adapter is not."""
    values, before = (np.asarray(each.convert("RGB"), np.float32) for each in (picture, without))
    flat = [float(each.std((0, 1)).max()) < FLAT for each in (values, before)]
    ends = [float(((each <= 2) | (each >= 253)).mean()) for each in (values, before)]
    return flat == [True, False] or ends[0] - ends[1] > CLIPPED


def pointing(texts: Float32[np.ndarray, "n d"], neutral: Float32[np.ndarray, " d"]) -> Float32[np.ndarray, " d"]:
    """Where texts point to, seen from a text that says nothing: the mean of their directions, of length 1."""
    return _unit(_units(texts - neutral).mean(0))


# --- What the cards of a catalog say of each other ---


class Trouble(StrEnum):
    """What is wrong with an adapter."""

    BREAKS = "breaks the picture"
    NOTHING = "does nothing"
    OTHERWISE = "doesn't do what its card says"


@dataclass(frozen=True)
class Verdict:
    """What an adapter's numbers say beside those of the others."""

    agreement: float | None
    """Share of the others' cards that fit what it does less than its own card, in [0, 1]. None: its card says nothing,
    or there are too few others."""
    trouble: Trouble | None


ENOUGH = 8
"""Others from which on an adapter is compared with them."""
FAR = 3.5
"""Robust z-score from which on a value is an outlier (Iglewicz and Hoaglin 1993)."""
NOTICEABLE = 0.1
"""Strength below which an adapter does nothing: a tenth of how much the checkpoint's own pictures differ."""
FITTING = 0.75
"""Agreement from which on an adapter does what its card says: the card is among the quarter that fits best."""


def verdicts(effects: Sequence[Effect], said: Sequence[Float32[np.ndarray, " d"] | None]) -> list[Verdict]:
    """Of adapters measured in one way, each beside all the others; `said` is where their cards' words point to."""
    agreements = agreement(effects, said)
    strange = outlying([effect.strangeness for effect in effects])
    found = []
    for effect, agrees, far in zip(effects, agreements, strange, strict=True):
        trouble = None
        if effect.broken >= 0.5 or far > FAR:
            trouble = Trouble.BREAKS
        elif effect.strength < NOTICEABLE:
            trouble = Trouble.NOTHING
        elif agrees is not None and agrees < FITTING:
            trouble = Trouble.OTHERWISE
        found.append(Verdict(agrees, trouble))
    return found


def agreement(effects: Sequence[Effect], said: Sequence[Float32[np.ndarray, " d"] | None]) -> list[float | None]:
    """`Verdict.agreement` of each. What all directions, and all cards, have in common says nothing of one and is taken
    out: any adapter changes what a picture looks like, any card speaks of pictures."""
    spoken = [n for n, vector in enumerate(said) if vector is not None]
    found: list[float | None] = [None] * len(effects)
    if len(spoken) <= ENOUGH:
        return found
    does = _centred(np.stack([effect.direction for effect in effects]))
    says = _centred(np.stack([vector for vector in said if vector is not None]))
    for place, n in enumerate(spoken):
        fits = says @ does[n]
        found[n] = float((np.delete(fits, place) < fits[place]).mean())
    return found


def outlying(values: Sequence[float]) -> list[float]:
    """Robust z-scores of the logarithms of positive values: distances from the median in units of the median distance,
    scaled so that they are standard deviations of normal values. Zeros for too few to compare."""
    logs = np.log(np.maximum(values, _LEAST))
    distances = logs - np.median(logs)
    unit = float(np.median(np.abs(distances))) / 0.6745
    if len(values) <= ENOUGH or unit == 0:
        return [0.0] * len(values)
    return [float(distance / unit) for distance in distances]


def _centred(vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    return _units(vectors - vectors.mean(0))


def _units(vectors: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Float32[np.ndarray, "n d"] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return found


def _unit(vector: Float[np.ndarray, " d"]) -> Float32[np.ndarray, " d"]:
    unit: Float32[np.ndarray, " d"] = _units(vector[None])[0]
    return unit


def _distances(one: Float[np.ndarray, "n d"], other: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Of vectors of length 1."""
    found: Float[np.ndarray, "n m"] = np.sqrt(np.clip(2 - 2 * one @ other.T, 0, None))
    return found
