"""From a composition and its masks to the weight schedule (paper, section 3.4; PAPER.md's algorithm, step 6).

Within a task the surviving adapters are averaged: each keeps its weight divided by their number. Tasks are summed,
which needs no arithmetic here: every adapter serves one task, and the generator adds the branches of all adapters.

Beside the paper's merge stand the two methods of "Multi-LoRA Composition" (arXiv 2402.16843), switch and composite,
where one adapter acts at a time, at its whole weight; a budget against saturation, one of the failures that the paper
names; and K-LoRA's idea of making adapters from different sources equally loud before they are mixed.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from stylus.errors import InvalidInput
from stylus.records import Composition, Mask, Method, Schedule

LOUDEST, QUIETEST = 2.0, 0.5
"""How far normalising may turn an adapter up and down: a norm says little about one that is far from all others."""


def effective_weights(composition: Composition, mask: Mask) -> Float32[np.ndarray, " adapters"]:
    """The strength of each choice in an image with that mask, in the order of Composition.choices; masked ones are 0.

    Raises InvalidInput when the mask has another length than the composition has choices."""
    weights: list[float] = []
    places = iter(_acting(composition, mask))
    for task in composition.tasks:
        on = [next(places) for _ in task.choices]
        weights += [choice.weight / sum(on) if kept else 0.0 for choice, kept in zip(task.choices, on, strict=True)]
    return np.array(weights, dtype=np.float32)


def schedule(
    composition: Composition,
    masks: Sequence[Mask],
    steps: int,
    *,
    method: Method = Method.MERGE,
    switch_every: int = 5,
    budget: float | None = None,
) -> Schedule:
    """The weights of a generation, one mask an image, by `method`; image_of_row is ascending and names every image.

    merge and switch have one row an image; composite has one for each adapter of the image's mask, and one of zeros for
    an image without adapters. `budget` bounds the sum of the absolute weights of every row and step. Raises
    InvalidInput for an adapter that is chosen twice, and where `effective_weights` does."""
    ids = tuple(choice.adapter_id for choice in composition.choices)
    twice = [adapter_id for adapter_id, times in Counter(ids).items() if times > 1]
    if twice:
        raise InvalidInput(f"adapter {twice[0]} is chosen more than once; leave it in one task and drop the others.")
    images = [_rows(composition, mask, steps, method, switch_every) for mask in masks]
    weights = np.concatenate([*images, np.zeros((0, len(ids), steps), np.float32)])
    return Schedule(
        adapters=ids,
        weights=weights if budget is None else within(weights, budget),
        image_of_row=np.repeat(np.arange(len(masks), dtype=np.int64), [len(rows) for rows in images]),
    )


def _rows(
    composition: Composition, mask: Mask, steps: int, method: Method, switch_every: int
) -> Float32[np.ndarray, "rows adapters steps"]:
    """The rows of one image."""
    if method is Method.MERGE:
        return np.repeat(effective_weights(composition, mask)[None, :, None], steps, axis=2)
    alone = _alone(composition, mask)
    if method is Method.COMPOSITE or len(alone) < 2:
        return np.repeat(alone[:, :, None], steps, axis=2)
    turns = np.arange(steps) // switch_every % len(alone)
    return np.ascontiguousarray(alone[turns].T[None])


def _alone(composition: Composition, mask: Mask) -> Float32[np.ndarray, "rows adapters"]:
    """Each adapter of the mask in a row of its own, at its whole weight: beside no other there is nothing to average
    with. A row of zeros where there is none."""
    weights = np.array([choice.weight for choice in composition.choices], dtype=np.float32)
    rows = np.diag(weights)[np.array(_acting(composition, mask), dtype=bool)]
    return rows if len(rows) else np.zeros((1, len(weights)), np.float32)


def within(
    weights: Float32[np.ndarray, "rows adapters steps"], budget: float
) -> Float32[np.ndarray, "rows adapters steps"]:
    """The same proportions, turned down where the absolute weights of a row and step sum to more than `budget`."""
    sums = np.abs(weights).sum(axis=1, keepdims=True)
    scaled: Float32[np.ndarray, "rows adapters steps"] = weights * (budget / np.maximum(sums, budget))
    return scaled


def reweighed(composition: Composition, weights: Mapping[str, float]) -> Composition:
    """The composition with these weights, by adapter id, in place of its own; at 0 an adapter leaves it. The id follows
    from both, so that the same weights give the same composition. Raises InvalidInput for an adapter that it lacks."""
    own = {choice.adapter_id: choice.weight for choice in composition.choices}
    if strange := [id for id in weights if id not in own]:
        raise InvalidInput(
            f"composition {composition.id} has no adapter {strange[0]!r} to change the weight of. It has: "
            f"{', '.join(own) or 'none'}. For other adapters, pass the prompt and all of them."
        )
    new = own | dict(weights)
    if new == own:
        return composition
    digest = hashlib.sha256(json.dumps([composition.id, sorted(new.items())]).encode()).digest()[:16]
    tasks = (
        task.model_copy(
            update={
                "choices": tuple(
                    choice.model_copy(update={"weight": new[choice.adapter_id]})
                    for choice in task.choices
                    if new[choice.adapter_id] != 0
                )
            }
        )
        for task in composition.tasks
    )
    id = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return composition.model_copy(update={"id": id, "tasks": tuple(tasks)})


def normalised(weight: float, norm: float, median: float) -> float:
    """The weight at which an adapter of that norm is as loud as one of its base model's median norm at `weight`.

    Norms are Frobenius norms of the whole weight change at strength 1. The factor stays within [0.5, 2], the result
    within [-4, 4]; a norm or median of 0 changes nothing."""
    if norm <= 0 or median <= 0:
        return weight
    return float(np.clip(weight * np.clip(median / norm, QUIETEST, LOUDEST), -4.0, 4.0))


def _acting(composition: Composition, mask: Mask) -> list[bool]:
    """Which choices do anything: one at weight 0 counts as masked, and leaves its task to the others."""
    if len(mask) != len(composition.choices):
        raise InvalidInput(
            f"a mask of {len(mask)} places doesn't fit composition {composition.id!r} with "
            f"{len(composition.choices)} adapters; give one place per adapter, in task order."
        )
    return [kept and choice.weight != 0 for choice, kept in zip(composition.choices, mask, strict=True)]
