"""What choosing adapters costs beside drawing, by batch size (paper, section 4.4: 75% at batch 1).

Each figure is the median over prompts, after one warm-up; every generation embeds its prompt and loads its adapters
anew, so that `search` and `load` are not flattered by what is kept.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stylus.lexical_composer import Limits
from stylus.records import BaseModelFamily, OnProgress, Progress

if TYPE_CHECKING:
    from stylus.stylus import Stylus

BATCHES = (1, 2, 4, 8)
STAGES = ("search", "compose", "load", "generate")


def overhead(
    stylus: "Stylus",
    texts: Sequence[str],
    family: BaseModelFamily,
    on_progress: OnProgress,
    batches: Sequence[int] = BATCHES,
    checkpoint: str | None = None,
) -> dict[str, dict[str, float]]:
    """Batch size -> seconds of each stage, and `overhead` = (search + compose + load) / generate."""
    _time_one(stylus, texts[0], 1, family, checkpoint)
    found: dict[str, dict[str, float]] = {}
    for batch in batches:
        runs: list[Mapping[str, float]] = []
        for text in texts:
            total = len(batches) * len(texts)
            on_progress(Progress(stage="timing", done=len(found) * len(texts) + len(runs), total=total))
            runs.append(_time_one(stylus, text, batch, family, checkpoint))
        medians = {stage: statistics.median(run[stage] for run in runs) for stage in STAGES}
        share = (medians["search"] + medians["compose"] + medians["load"]) / medians["generate"]
        found[str(batch)] = {name: round(value, 4) for name, value in {**medians, "overhead": share}.items()}
    return found


def _time_one(
    stylus: "Stylus", text: str, batch: int, family: BaseModelFamily, checkpoint: str | None
) -> Mapping[str, float]:
    stylus.embedder.forget()
    start = time.perf_counter()
    matches = stylus.candidates(text, family)
    found = time.perf_counter()
    stylus.composer.compose(text, matches, Limits(), 0.0)
    composed = time.perf_counter()
    composition = stylus.compose(text, base_model=family)
    stylus.generator.forget_adapters()
    request = stylus.request(composition, count=batch, seed=1, checkpoint=checkpoint)
    seconds = stylus.pictures.render(request)[0].seconds
    return {"search": found - start, "compose": composed - found, **{s: seconds[s] for s in ("load", "generate")}}
