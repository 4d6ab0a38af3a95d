"""From pictures and what was seen in them to the figures of the report (paper, section 4): every mean is over all
images, every interval resamples prompts, every difference is taken prompt by prompt on the same seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from stylus.evaluation.features import Features, TextFeatures
from stylus.evaluation.ledger import Drawn, Ledger
from stylus.evaluation.metrics import (
    Interval,
    blocked,
    bootstrapped,
    clip_score,
    cosines,
    dfid,
    fid,
    kid,
    moments,
    slope,
    win_tie_lose,
)
from stylus.evaluation.protocol import BASE, Mode, spread
from stylus.evaluation.reference import Reference
from stylus.keywords import keywords

Measure = tuple[np.ndarray, np.ndarray]
"""Values and weights, one for each prompt: the weighted mean is the figure."""

MEASURES = {
    "clip": "100 x cosine of picture and prompt",
    "concept_rate": "share of requested concepts that the independent judge sees",
    "task_clip": "as clip, each keyword of the prompt on its own",
    "weakest_task": "as task_clip, of the prompt's worst keyword",
    "blocked": "share of keywords that fell below the base's by more than its spread (task blocking)",
    "control_similarity": "cosine of the picture with the base's of the same seed",
    "dfid": "trace of the covariance of one prompt's pictures: diversity",
}
"""In the order of reports. For all but `blocked` and `control_similarity` more is better."""
COMPARED = ("clip", "concept_rate", "task_clip", "weakest_task", "dfid")
LENGTHS = ((1, 6), (7, 9), (10, 14), (15, 10_000))
"""Words of a prompt: short to long."""


@dataclass(frozen=True)
class Seen:
    """The pictures of one mode, arm and guidance: axes are prompt, image, vector."""

    prompts: Sequence[int]
    clip: Float[np.ndarray, "p i d"]
    features: Float[np.ndarray, "p i e"]
    concepts: Sequence[Sequence[frozenset[str]]] | None
    """What the judge saw, of what was asked."""
    pictures: Sequence[Sequence[Drawn]]


def results(ledger: Ledger, clip: TextFeatures, features: Features, reference: Reference | None) -> dict[str, Any]:
    """The report as JSON values; an interval is [value, low, high]. All pictures must have been looked at."""
    plan = ledger.plan
    seen = _gathered(ledger, clip.name, features.name)
    texts = clip.texts([prompt.text for prompt in plan.prompts])
    asked = [keywords(prompt.text) or [prompt.text] for prompt in plan.prompts]
    words = dict(
        zip((all_words := sorted({word for each in asked for word in each})), clip.texts(all_words), strict=True)
    )
    tasks = [np.stack([words[word] for word in each]) for each in asked]
    drawn = [arm.name for arm in plan.arms if (Mode.TEXT, arm.name, plan.guidance) in seen]
    main = {arm: seen[Mode.TEXT, arm, plan.guidance] for arm in drawn}
    measures = {arm: _measures(plan.prompts, one, main[BASE.name], texts, tasks) for arm, one in main.items()}

    def row(one: Seen, found: Mapping[str, Measure]) -> dict[str, Any]:
        count = sum(map(len, one.pictures))
        return {
            **{name: _told(bootstrapped(*measure)) for name, measure in found.items()},
            **(_distances(one, reference) if reference is not None and count > 1 else {}),
            "images": count,
        }

    return {
        "prompts": len(plan.prompts),
        "images_per_prompt": plan.images,
        "features": {"clip": clip.name, "fid": features.name, "reference": reference.name if reference else None},
        "arms": {arm: row(main[arm], found) for arm, found in measures.items()},
        "against_base": {
            arm: _against(found, measures[BASE.name]) for arm, found in measures.items() if arm != BASE.name
        },
        "stylus_against": {
            arm: _against(measures["stylus"], found)
            for arm, found in measures.items()
            if "stylus" in measures and arm != "stylus"
        },
        "by_category": _split(measures, _by_category(plan.prompts)),
        "by_length": _split(measures, _by_length(plan.prompts)),
        "diversity_by_length": _diversity(measures, plan.prompts),
        "picks": {arm: _picks(one) for arm, one in main.items()},
        "curve": {
            arm: [
                {"guidance": guidance, **row(one, _measures(plan.prompts, one, None, texts, tasks))}
                for guidance in plan.curve
                for one in [_of(seen[Mode.TEXT, arm, guidance], spread(len(plan.prompts), plan.curve_prompts))]
            ]
            for arm in plan.curve_arms
            if plan.curve_prompts and arm in main and all((Mode.TEXT, arm, g) in seen for g in plan.curve)
        },
        "sets": {
            mode.value: {
                arm: row(one, _measures(plan.prompts, one, seen[mode, BASE.name, plan.guidance], texts, tasks))
                for (its, arm, _), one in seen.items()
                if its is mode
            }
            for mode in (Mode.TRANSLATION, Mode.INPAINTING)
            if (mode, BASE.name, plan.guidance) in seen
        },
        "notes": _notes(main, features, reference),
    }


def _gathered(ledger: Ledger, clip: str, features: str) -> dict[tuple[Mode, str, float], Seen]:
    clips, others = ledger.vectors(clip), ledger.vectors(features)
    groups: dict[tuple[Mode, str, float], dict[int, list[Drawn]]] = {}
    for one in ledger.pictures():
        groups.setdefault((one.mode, one.arm, one.guidance), {}).setdefault(one.prompt, []).append(one)
    found = {}
    for key, by_prompt in groups.items():
        whole = {prompt: row for prompt, row in by_prompt.items() if len(row) == ledger.plan.images}
        judged = all("concepts" in one.measures for row in whole.values() for one in row)
        found[key] = Seen(
            prompts=list(whole),
            clip=np.array([[clips[one.id] for one in row] for row in whole.values()]),
            features=np.array([[others[one.id] for one in row] for row in whole.values()]),
            concepts=[[frozenset(one.measures["concepts"]) for one in row] for row in whole.values()]
            if judged
            else None,
            pictures=list(whole.values()),
        )
    return found


def _of(one: Seen, prompts: Sequence[int]) -> Seen:
    """The pictures of some of the prompts."""
    kept = [place for place, prompt in enumerate(one.prompts) if prompt in prompts]
    return Seen(
        [one.prompts[place] for place in kept],
        one.clip[kept],
        one.features[kept],
        None if one.concepts is None else [one.concepts[place] for place in kept],
        [one.pictures[place] for place in kept],
    )


def _measures(
    prompts: Sequence[Any], one: Seen, control: Seen | None, texts: np.ndarray, tasks: Sequence[np.ndarray]
) -> dict[str, Measure]:
    """Each measure over the pictures' prompts, without those that these pictures don't allow."""
    count, images = one.clip.shape[:2]
    even = np.ones(count)
    scores = np.array(
        [
            clip_score(row, np.broadcast_to(texts[p], row.shape)).mean()
            for p, row in zip(one.prompts, one.clip, strict=True)
        ]
    )
    by_task = [100 * np.clip(row @ tasks[p].T, 0, None) for p, row in zip(one.prompts, one.clip, strict=True)]
    found: dict[str, Measure] = {"clip": (scores, even)}
    if one.concepts is not None and any(prompts[p].concepts for p in one.prompts):
        wanted = np.array([len(prompts[p].concepts) * images for p in one.prompts], np.float64)
        hits = np.array([sum(map(len, row)) for row in one.concepts], np.float64)
        found["concept_rate"] = (np.divide(hits, wanted, out=np.zeros(count), where=wanted > 0), wanted)
    found["task_clip"] = (np.array([row.mean() for row in by_task]), even)
    found["weakest_task"] = (np.array([row.min(1).mean() for row in by_task]), even)
    if control is not None and control is not one:
        other = [100 * np.clip(row @ tasks[p].T, 0, None) for p, row in zip(one.prompts, control.clip, strict=True)]
        number = np.array([row.shape[1] for row in by_task], np.float64)
        lost = np.array([blocked(ours, theirs) for ours, theirs in zip(by_task, other, strict=True)], np.float64)
        found["blocked"] = (lost / number, number)
        pairs = zip(one.clip, control.clip, strict=True)
        found["control_similarity"] = (np.array([cosines(ours, theirs).mean() for ours, theirs in pairs]), even)
    if images > 1:
        found["dfid"] = (np.array([dfid(row) for row in one.features]), even)
    return found


def _distances(one: Seen, reference: Reference) -> dict[str, float]:
    vectors = one.features.reshape(-1, one.features.shape[-1])
    found = {"fid": round(fid(moments(vectors), reference.moments), 4)}
    if reference.vectors is not None:
        found["kid"] = round(kid(vectors, reference.vectors), 5)
    return found


def _against(ours: Mapping[str, Measure], theirs: Mapping[str, Measure]) -> dict[str, Any]:
    """Ours minus theirs, and on which share of prompts ours is better; ties are exactly equal figures."""
    found = {}
    for name in COMPARED:
        if name in ours and name in theirs:
            (values, weights), (others, _) = ours[name], theirs[name]
            counted = weights > 0
            outcomes = win_tie_lose(values[counted], others[counted])
            found[name] = {
                "difference": _told(bootstrapped(values - others, weights)),
                **{outcome: _told(interval) for outcome, interval in outcomes.items()},
            }
    return found


def _split(measures: Mapping[str, Mapping[str, Measure]], groups: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Group -> arm -> measures over the group's prompts."""
    found: dict[str, Any] = {}
    for group, members in groups.items():
        places = list(members)
        found[group] = {"prompts": len(places), "arms": {}}
        for arm, by_name in measures.items():
            chosen = {name: (values[places], weights[places]) for name, (values, weights) in by_name.items()}
            found[group]["arms"][arm] = {
                name: _told(bootstrapped(*measure)) for name, measure in chosen.items() if measure[1].sum() > 0
            }
    return found


def _by_category(prompts: Sequence[Any]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(prompt.category, []).append(place)
    return groups


def _by_length(prompts: Sequence[Any]) -> dict[str, list[int]]:
    lengths = [len(prompt.text.split()) for prompt in prompts]
    groups = {
        f"{low} to {high} words" if high < 10_000 else f"{low} words and more": [
            place for place, length in enumerate(lengths) if low <= length <= high
        ]
        for low, high in LENGTHS
    }
    return {name: places for name, places in groups.items() if places}


def _diversity(measures: Mapping[str, Mapping[str, Measure]], prompts: Sequence[Any]) -> dict[str, Any]:
    lengths = [len(prompt.text.split()) for prompt in prompts]
    found = {}
    for arm, by_name in measures.items():
        if "dfid" in by_name and len(set(lengths)) > 1:
            values = by_name["dfid"][0]
            found[arm] = {
                "slope_per_word": _told(slope(lengths, values.tolist()), 6),
                "points": [[length, round(float(value), 4)] for length, value in zip(lengths, values, strict=True)],
            }
    return found


def _picks(one: Seen) -> dict[str, Any]:
    """Adapters, tasks and empty tasks of the compositions, as the paper counts them."""
    asked = [row[0].record["request"]["composition"]["tasks"] for row in one.pictures]
    sizes = [len(task["choices"]) for tasks in asked for task in tasks]
    counts = [sum(len(task["choices"]) for task in tasks) for tasks in asked]
    return {
        "adapters_per_prompt": round(float(np.mean(counts)), 3),
        "tasks_per_prompt": round(float(np.mean([len(tasks) for tasks in asked])), 3),
        "empty_tasks": round(sizes.count(0) / max(1, len(sizes)), 3),
        "histogram": {str(n): counts.count(n) for n in range(max(counts) + 1)},
    }


def _notes(main: Mapping[str, Seen], features: Features, reference: Reference | None) -> list[str]:
    first = next(iter(main.values()))
    count, width = first.features.shape[0] * first.features.shape[1], first.features.shape[2]
    notes = []
    if reference is None:
        notes.append("No reference was given: there is no FID and no KID.")
    elif count < 2:
        notes.append("There is one picture an arm: FID and KID need two.")
    else:
        notes.append(
            f"FID is of {count} pictures an arm under {features.name} ({width} numbers a picture). It is biased up "
            "for few pictures, for all arms alike; KID, beside it, is not. Neither compares with figures of Inception."
        )
        if count < width:
            notes.append(f"{count} pictures do not fix a covariance of {width} numbers: read KID, not FID.")
    made = {
        (r["checkpoint"]["sha256"], *r["versions"].values())
        for s in main.values()
        for row in s.pictures
        for r in [row[0].record]
    }
    if len(made) > 1:
        notes.append(
            "The pictures were made by several checkpoints or versions of packages: draw them anew to compare."
        )
    return notes


def _told(interval: Interval, digits: int = 4) -> list[float]:
    return [round(value, digits) for value in (interval.value, interval.low, interval.high)]
