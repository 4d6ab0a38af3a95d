"""One evaluation from plan to report: draw, look, compute, tell. Stopped anywhere, it goes on when it is run again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stylus.evaluation.drawing import SeesConcepts, draw, look
from stylus.evaluation.features import Features, TextFeatures
from stylus.evaluation.ledger import Ledger, write_whole
from stylus.evaluation.overhead import overhead
from stylus.evaluation.protocol import Plan, spread
from stylus.evaluation.reference import Reference
from stylus.evaluation.report import save_report
from stylus.evaluation.results import results
from stylus.records import OnProgress

if TYPE_CHECKING:
    from stylus.stylus import Stylus

TIMED = 8
"""Prompts whose stages are timed."""
RIVALS = ("base", "reranker", "retriever", "random")


def evaluate(
    stylus: "Stylus",
    plan: Plan,
    folder: Path,
    clip: TextFeatures,
    features: Features,
    *,
    reference: Path | None = None,
    judge: SeesConcepts | None = None,
    timed: bool = True,
    not_run: Mapping[str, str] | None = None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Draws what is missing of `plan` in `folder`, looks at it through `clip` and `features` and returns the report,
    which is also written there with its figures and page.

    `reference` holds real pictures for FID and KID; `judge` sees the prompts' concepts; `timed` also times the stages;
    `not_run` says which arms could not be run, and why. Raises what opening, drawing and reading raise, and Cancelled.
    """
    ledger = Ledger.begin(stylus.database, plan, folder)
    draw(stylus, ledger, on_progress)
    # two names of one model are looked through once
    models = {model.name: model for model in (clip, features)}
    look(ledger, list(models.values()), judge, on_progress)
    real = None if reference is None else Reference.open(reference, features, on_progress)
    found = results(ledger, clip, features, real)
    report = {
        "evaluation": ledger.id,
        **found,
        "overhead": _timed(stylus, ledger, on_progress) if timed else {},
        "expectations": expectations(found),
        "not_run": dict(not_run or {}),
    }
    save_report(ledger, report)
    return report


def _timed(stylus: "Stylus", ledger: Ledger, on_progress: OnProgress) -> dict[str, dict[str, float]]:
    """Measured once and kept beside the pictures, so that a second run has the same report."""
    path = ledger.folder / "overhead.json"
    if not path.exists():
        plan = ledger.plan
        texts = [plan.prompts[place].text for place in spread(len(plan.prompts), TIMED)]
        found = overhead(stylus, texts, plan.base_model, on_progress, checkpoint=plan.checkpoint)
        write_whole(path, json.dumps(found, indent=1).encode())
    kept: dict[str, dict[str, float]] = json.loads(path.read_bytes())
    return kept


def expectations(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the paper claims, each with the verdict of these figures: confirmed, refuted or open."""
    arms = found["arms"]
    if "stylus" not in arms:
        return []
    told = []
    for name, words in (("clip", "CLIP score"), ("concept_rate", "concept rate")):
        if name in arms["stylus"]:
            rivals = [arm for arm in RIVALS if arm in arms]
            told.append(_above(arms, name, words, rivals))
    if "dfid" in arms["stylus"]:
        told.append(_diverse(found))
    return told


def _above(arms: Mapping[str, Any], name: str, words: str, rivals: Sequence[str]) -> dict[str, str]:
    _, low, high = arms["stylus"][name]
    apart = [arm for arm in rivals if low > arms[arm][name][2]]
    below = [arm for arm in rivals if high < arms[arm][name][1]]
    why = f"Intervals apart from {', '.join(apart) or 'none'}"
    if others := [arm for arm in rivals if arm not in (*apart, *below)]:
        why += f"; they overlap with {', '.join(others)}"
    if below:
        why += f"; Stylus is below {', '.join(below)}"
    verdict = "confirmed" if len(apart) == len(rivals) else "refuted" if below else "open"
    return {"claim": f"Stylus is above {', '.join(rivals)} in {words}.", "verdict": verdict, "why": f"{why}."}


def _diverse(found: Mapping[str, Any]) -> dict[str, str]:
    """At equal CLIP: along the two curves of guidance, where their CLIP scores meet; the difference at one guidance
    says nothing, since a curve trades one for the other."""
    claim = "Stylus is more diverse (dFID) than base at equal CLIP score."
    value, low, high = found["against_base"]["stylus"]["dfid"]["difference"]
    at_same = f"At one guidance the difference is {value:.3f} [{low:.3f}, {high:.3f}]"
    curve = found["curve"]
    if not {"base", "stylus"} <= set(curve):
        return {"claim": claim, "verdict": "open", "why": f"{at_same}; no curve was drawn."}
    scores = {arm: sorted((p["clip"][0], p["dfid"][0]) for p in curve[arm]) for arm in ("base", "stylus")}
    bottom = max(points[0][0] for points in scores.values())
    top = min(points[-1][0] for points in scores.values())
    if bottom > top:
        reached = ", ".join(f"{arm} {points[0][0]:.2f} to {points[-1][0]:.2f}" for arm, points in scores.items())
        why = f"{at_same}; the curves' CLIP scores never meet ({reached}), so that no CLIP score is equal."
        return {"claim": claim, "verdict": "open", "why": why}
    at = np.linspace(bottom, top, 9)
    ours, theirs = (
        np.interp(at, [clip for clip, _ in scores[arm]], [diversity for _, diversity in scores[arm]])
        for arm in ("stylus", "base")
    )
    verdict = "confirmed" if (ours > theirs).all() else "refuted" if (ours < theirs).all() else "open"
    why = f"From CLIP {bottom:.2f} to {top:.2f} its dFID is {ours.mean():.3f} on average, base's {theirs.mean():.3f}."
    why = f"{why} {at_same}."
    return {"claim": claim, "verdict": verdict, "why": why}
