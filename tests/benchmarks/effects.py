"""Do report cards find the planted bad adapters of the pocket catalog?

`python -m tests.benchmarks.effects --json OUT [--data FOLDER] [--prompts N]`: measures all pocket adapters (with --data
a run that was stopped goes on) and prints which are in trouble beside the truth, precision and recall of the planted
ones, how often exchanged cards are noticed (each good adapter with the cards of all that draw something else: nothing
is drawn for that), and, with --prompts, the judge's rate of requested concepts over test prompts before and after the
findings became flags.
"""

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path

from stylus.evaluation.card_shelf import ReportCard, Shelf, judge
from stylus.evaluation.effects import FITTING, agreement
from stylus.evaluation.features import open_text_features
from stylus.evaluation.report_cards import Measuring
from stylus.ingest import ingest_pocket
from stylus.pocket import prompts, truth
from stylus.pocket.judge import Judge
from stylus.records import BaseModelFamily, Progress
from stylus.settings import Settings
from stylus.stylus import Stylus
from tests.benchmarks import data_folder
from tests.benchmarks.pocket import IMAGES, shown

PLANTED = {"undertrained", "overstrong", "inverted", "mislabelled"}
LYING = {"misleading_card", "empty_card"}
"""The adapter may be good; its card is of no use."""


def found_and_missed(cards: list[ReportCard]) -> dict[str, object]:
    """Precision and recall: of the planted ones, and of those with useless cards beside them."""
    verdicts, known = judge(cards), truth()
    troubled = {id for id, verdict in verdicts.items() if verdict.trouble}
    rows = {
        id: {"quality": known[id].quality, "trouble": verdict.trouble, "agreement": verdict.agreement}
        for id, verdict in verdicts.items()
        if verdict.trouble or known[id].quality != "good"
    }

    def scored(bad: set[str]) -> dict[str, object]:
        wanted = {id for id in verdicts if known[id].quality in bad}
        right = len(wanted & troubled)
        return {"precision": right / max(1, len(troubled)), "recall": right / max(1, len(wanted)), "bad": len(wanted)}

    return {"adapters": rows, "planted": scored(PLANTED), "planted and useless cards": scored(PLANTED | LYING)}


def exchanged(cards: list[ReportCard]) -> dict[str, float]:
    """Of the good adapters, how many agree with their own card, and with how many of the others' cards they don't."""
    known = truth()
    concepts = [known[card.measured.adapter].concept for card in cards]
    good = [place for place, card in enumerate(cards) if known[card.measured.adapter].quality == "good"]
    effects, said = [card.effect for card in cards], [card.said for card in cards]
    noticed = tried = 0
    for place in good:
        for other in good:
            if concepts[other] != concepts[place]:
                swapped = list(said)
                swapped[place], swapped[other] = said[other], said[place]
                share = agreement(effects, swapped)[place]
                noticed += share is not None and share < FITTING
                tried += 1
    own = agreement(effects, said)
    agreed = [share >= FITTING for place in good if (share := own[place]) is not None]
    return {"own card agrees": sum(agreed) / max(1, len(agreed)), "exchanged card is noticed": noticed / max(1, tried)}


def rates(stylus: Stylus, count: int) -> dict[str, float]:
    """The judge's rate of requested concepts over the first test prompts, without flags and with those of the cards."""
    eye, shelf, asked = Judge.load(), Shelf(stylus.database), prompts()[:count]
    found: dict[str, float] = {}
    for name in ("all adapters", "without those in trouble"):
        hits = 0
        for number, prompt in enumerate(asked):
            composition = stylus.compose(prompt.text)
            hits += shown(eye, stylus.generate(composition, seed=1000 * number, count=IMAGES), prompt.concepts)
        found[name] = hits / (IMAGES * sum(len(prompt.concepts) for prompt in asked))
        shelf.flag(judge(shelf.all()))
    shelf.unflag()
    return found


def chosen(stylus: Stylus) -> dict[str, int]:
    """How often the composer chooses an adapter in trouble over all test prompts: nothing is drawn."""
    shelf = Shelf(stylus.database)
    troubled = {id for id, verdict in judge(shelf.all()).items() if verdict.trouble}
    picks = [choice.adapter_id for prompt in prompts() for choice in stylus.compose(prompt.text).choices]
    return {"choices": len(picks), "of adapters in trouble": sum(id in troubled for id in picks)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--data", type=Path, help="folder to go on in; default: a new one")
    parser.add_argument("--only", nargs="*", default=(), help="ids of adapters; default: all")
    parser.add_argument("--prompts", type=int, default=0, help="test prompts to draw with and without flags")
    arguments = parser.parse_args()

    def told(progress: Progress) -> None:
        if progress.stage == "report cards":
            print(f"{progress.done}/{progress.total}", file=sys.stderr, flush=True)

    folder = nullcontext(arguments.data) if arguments.data else data_folder()
    with folder as data, Stylus(Settings(data=Path(data))) as stylus:
        ingest_pocket(stylus.catalog, stylus.embedder)
        measuring = Measuring(stylus, open_text_features(), BaseModelFamily.POCKET)
        measured = measuring.run(arguments.only, told)
        cards = Shelf(stylus.database).all()
        result = {
            "measured": len(cards),
            "failed": [problem.model_dump() for problem in measured.failed],
            **found_and_missed(cards),
            **exchanged(cards),
            "choices": chosen(stylus),
            "rates": rates(stylus, arguments.prompts) if arguments.prompts else None,
        }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
