"""From a composition and its masks to the weight schedule (paper, section 3.4; PAPER.md's algorithm, step 6).

Within a task the surviving adapters are averaged: each keeps its weight divided by their number. Tasks are summed,
which needs no arithmetic here: every adapter serves one task, and the generator adds the branches of all adapters.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from stylus.errors import InvalidInput
from stylus.records import Composition, Mask, Schedule


def effective_weights(composition: Composition, mask: Mask) -> Float32[np.ndarray, " adapters"]:
    """The strength of each choice in an image with that mask, in the order of Composition.choices; masked ones are 0.

    Raises InvalidInput when the mask has another length than the composition has choices."""
    if len(mask) != len(composition.choices):
        raise InvalidInput(
            f"a mask of {len(mask)} places doesn't fit composition {composition.id!r} with "
            f"{len(composition.choices)} adapters; give one place per adapter, in task order."
        )
    weights: list[float] = []
    places = iter(mask)
    for task in composition.tasks:
        on = [next(places) for _ in task.choices]
        weights += [choice.weight / sum(on) if kept else 0.0 for choice, kept in zip(task.choices, on, strict=True)]
    return np.array(weights, dtype=np.float32)


def merge_schedule(composition: Composition, masks: Sequence[Mask], steps: int) -> Schedule:
    """The paper's merge as a Schedule: one row per image (= per mask), constant over the steps.

    weights has the shape [len(masks), len(choices), steps]. Raises InvalidInput for an adapter that is chosen twice,
    and where `effective_weights` does."""
    ids = tuple(choice.adapter_id for choice in composition.choices)
    twice = [adapter_id for adapter_id, times in Counter(ids).items() if times > 1]
    if twice:
        raise InvalidInput(f"adapter {twice[0]} is chosen more than once; leave it in one task and drop the others.")
    rows = np.zeros((len(masks), len(ids), steps), dtype=np.float32)
    for row, mask in zip(rows, masks, strict=True):
        row[:] = effective_weights(composition, mask)[:, None]
    return Schedule(adapters=ids, weights=rows, image_of_row=np.arange(len(masks), dtype=np.int64))
