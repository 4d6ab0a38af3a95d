"""Adapters of the pocket world, measured: what is kept, what is made again and what becomes of the findings."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stylus.catalog import Catalog
from stylus.errors import Cancelled, InvalidInput
from stylus.evaluation.card_shelf import ReportCard, Shelf, judge
from stylus.evaluation.effects import PROBES, Trouble, Verdict
from stylus.evaluation.features import ClipModel, open_text_features
from stylus.evaluation.report_cards import Measuring, sheet
from stylus.evaluation.shots import Shots
from stylus.pocket import ADAPTERS
from stylus.records import Adapter, BaseModelFamily, Filters, Progress
from stylus.settings import Settings
from stylus.stylus import Stylus

NAMES = {"star_v0": "star", "neon_max": "neon outline"}
"""Adapters that hardly do anything, and too much."""


def pocket(name: str, file: Path | None = None) -> Adapter:
    path = file or ADAPTERS / f"{name}.safetensors"
    return Adapter(
        id=f"pocket:{name}",
        name=name,
        trigger_words=(NAMES[name],),
        weight=1.0,
        base_model=BaseModelFamily.POCKET,
        file=str(path),
    )


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    return open_text_features()


@pytest.fixture
def stylus(settings: Settings) -> Iterator[Stylus]:
    with Stylus(settings) as opened:
        opened.catalog.add([pocket(name) for name in NAMES])
        yield opened


def measuring(stylus: Stylus, clip: ClipModel) -> Measuring:
    probes = [PROBES[BaseModelFamily.POCKET][n] for n in (0, 2)]
    return Measuring(stylus, clip, BaseModelFamily.POCKET, probes=probes, images=2)


def same(one: ReportCard, other: ReportCard) -> bool:
    numbers = ("strength", "consistency", "strangeness", "broken", "kept")
    assert one.said is not None
    assert other.said is not None
    return (
        one.measured == other.measured
        and np.array_equal(one.effect.direction, other.effect.direction)
        and np.array_equal(one.said, other.said)
        and all(getattr(one.effect, name) == getattr(other.effect, name) for name in numbers)
    )


def test_a_run_that_was_stopped_goes_on_and_makes_no_picture_twice(
    stylus: Stylus, clip: ClipModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[tuple[object, ...]] = []
    draw = Shots._drawn

    def counted(self: Shots, *arguments: object) -> object:
        found = draw(self, *arguments)  # type: ignore[arg-type]
        drawn.append(arguments[:4])
        return found

    monkeypatch.setattr(Shots, "_drawn", counted)

    def stop(progress: Progress) -> None:
        if len(drawn) == 3 and progress.stage == "generating" and progress.done > 3:
            raise Cancelled("Enough.")

    with pytest.raises(Cancelled):
        measuring(stylus, clip).run(on_progress=stop)
    assert len(drawn) == 3
    report = measuring(stylus, clip).run()
    assert (report.measured, report.unchanged, report.failed) == (2, 0, ())
    assert len(drawn) == len(set(drawn)) == 10  # two prompts: plain once, words and adapter for each of the two

    shelf = Shelf(stylus.database)
    cards = shelf.get(["pocket:star_v0", "pocket:neon_max"])
    weak, strong = (cards[f"pocket:{name}"] for name in NAMES)
    assert weak.effect.strength < 0.2 < 0.8 < strong.effect.strength
    assert weak.effect.strangeness < 0.3 < strong.effect.strangeness
    assert weak.effect.kept == 1.0
    assert set(judge(shelf.all())) == set(cards)

    assert measuring(stylus, clip).run().unchanged == 2
    with stylus.database.connection() as connection:
        connection.execute("delete from adapter_effects")
    copy = shutil.copy(ADAPTERS / "star_v0.safetensors", tmp_path / "moved.safetensors")
    os.utime(copy, ns=(1, 1))
    Catalog(stylus.database).move([pocket("star_v0", Path(copy))])
    assert measuring(stylus, clip).run().measured == 2
    assert len(drawn) == 10
    again = shelf.get(list(cards))
    assert same(again["pocket:neon_max"], cards["pocket:neon_max"])
    assert again["pocket:star_v0"].effect.strength == weak.effect.strength

    def never(progress: Progress) -> None:
        if progress.stage == "generating":
            raise Cancelled("It is measured again.")

    stylus.preferences.set_weight("pocket:star_v0", 0.5)
    with pytest.raises(Cancelled):
        measuring(stylus, clip).run(on_progress=never)

    made = measuring(stylus, clip)
    [adapter] = stylus.catalog.require(["pocket:neon_max"])
    picture = sheet(made.exposures(adapter), adapter, cards[adapter.id], Verdict(None, None))
    assert picture.width > 700
    assert len(drawn) == 10


def test_what_can_not_be_measured_is_named(stylus: Stylus, clip: ClipModel, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x08")
    stylus.catalog.add([pocket("star_v0", broken), pocket("neon_max", tmp_path / "nowhere.safetensors")])
    report = measuring(stylus, clip).run()
    assert (report.measured, report.without_file) == (0, 1)
    [problem] = report.failed
    assert problem.id == "pocket:star_v0"
    assert "broken.safetensors" in problem.reason
    stylus.catalog.add([pocket("star_v0").model_copy(update={"base_model": BaseModelFamily.SD15})])
    with pytest.raises(InvalidInput, match="sd15, and pocket is measured"):
        measuring(stylus, clip).run(["pocket:star_v0"])


def test_flags_are_set_and_taken_back_and_others_stay(stylus: Stylus) -> None:
    shelf = Shelf(stylus.database)
    foreign = pocket("neon_max").model_copy(update={"quality": "a model's own doubt"})
    stylus.catalog.add([foreign])
    bad, fine = Verdict(0.1, Trouble.OTHERWISE), Verdict(0.9, None)

    def flags() -> dict[str, str | None]:
        return {adapter.id: adapter.quality for adapter, _ in stylus.catalog.all()}

    def found() -> set[str]:
        return {adapter.id for adapter in stylus.catalog.sample(Filters(), 10, 0)}

    shelf.flag({"pocket:star_v0": bad, "pocket:neon_max": bad})
    assert flags() == {
        "pocket:star_v0": "report card: doesn't do what its card says",
        "pocket:neon_max": "a model's own doubt",
    }
    assert found() == set()
    shelf.flag({"pocket:star_v0": fine, "pocket:neon_max": fine})
    assert flags() == {"pocket:star_v0": None, "pocket:neon_max": "a model's own doubt"}
    assert found() == {"pocket:star_v0"}
    shelf.flag({"pocket:star_v0": bad})
    shelf.unflag()
    assert flags() == {"pocket:star_v0": None, "pocket:neon_max": "a model's own doubt"}
