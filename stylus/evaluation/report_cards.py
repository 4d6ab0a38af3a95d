"""Measures what the adapters of the catalog do, one after the other, and keeps their report cards.

Adapters whose file, weight and words are as before are not measured again; pictures are kept, so that a run that was
stopped makes none twice and ends with the same cards.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from PIL import Image

from stylus.contact_sheet import Row, contact_sheet
from stylus.errors import AdapterFileError, BrokenDown, InvalidInput
from stylus.evaluation.card_shelf import Measured, ReportCard, Shelf, Yardstick
from stylus.evaluation.effects import (
    IMAGES,
    OTHER_SUBJECTS,
    PROBES,
    VERSION,
    Effect,
    Probe,
    Verdict,
    effect,
    is_broken,
    kept,
    pointing,
    shows,
)
from stylus.evaluation.features import TextFeatures
from stylus.evaluation.shots import Shots, Subject
from stylus.generation.store import reason
from stylus.records import Adapter, BaseModelFamily, ContentFilter, OnProgress, Progress, Rating, Record
from stylus.stylus import Stylus
from stylus.trigger_words import serving, wording

FOLDER = "report-cards"
"""Of the pictures, in the data folder."""
LONGEST = 300
"""Characters of a card's description that are read: text encoders of CLIP read 77 tokens."""
NEUTRAL = "a picture"


class Problem(Record):
    """An adapter that could not be measured."""

    id: str
    reason: str


class MeasureReport(Record):
    """What became of the adapters."""

    measured: int = 0
    unchanged: int = 0
    without_file: int = 0
    """Their weights are not on this machine."""
    failed: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Exposure:
    """The pictures of one prompt, of the same seeds."""

    text: str
    """Trigger words included."""
    subject: str | None
    """What they must show whatever the adapter adds."""
    plain: Sequence[Image.Image]
    worded: Sequence[Image.Image]
    with_it: Sequence[Image.Image] | None
    """None: their numbers broke down."""


class Measuring:
    """With one checkpoint of a family and one model of pictures and texts. Raises CheckpointError."""

    def __init__(
        self,
        stylus: Stylus,
        features: TextFeatures,
        family: BaseModelFamily,
        checkpoint: str | None = None,
        *,
        probes: Sequence[Probe] | None = None,
        images: int = IMAGES,
    ) -> None:
        """`probes`: None for the family's own. At least two prompts, and two images of each."""
        self._stylus, self._features, self.family = stylus, features, family
        self._loaded = stylus.generator.checkpoint(family, checkpoint)
        self._shots = Shots(stylus.generator, self._loaded, stylus.settings.data / FOLDER)
        self._probes, self._images = PROBES[family] if probes is None else probes, images
        self._shelf = Shelf(stylus.database)
        protocol = json.dumps([VERSION, images, [asdict(probe) for probe in self._probes]])
        self._yardstick = Yardstick(
            checkpoint=f"{self._loaded.name} {self._loaded.sha256[:16]}",
            features=features.name,
            protocol=hashlib.sha256(protocol.encode()).hexdigest()[:16],
        )

    def run(self, only: Sequence[str] = (), on_progress: OnProgress | None = None) -> MeasureReport:
        """Measures what has to be, of these adapters or of all of the family that are neither hidden nor missing.
        Raises NotFound, InvalidInput for an adapter of another family, and what `on_progress` raises; the cards that
        were done until then stay."""
        adapters = self._adapters(only)
        here = [adapter for adapter in adapters if adapter.file is not None and Path(adapter.file).is_file()]
        own = self._stylus.preferences.weights([adapter.id for adapter in here])
        before = self._shelf.get([adapter.id for adapter in here])
        measured, failed = 0, []
        for number, adapter in enumerate(here):
            if on_progress is not None:
                on_progress(Progress(stage="report cards", done=number, total=len(here)))
            try:
                card = self._card(adapter, own.get(adapter.id, adapter.weight), before.get(adapter.id), on_progress)
            except AdapterFileError as error:
                failed.append(Problem(id=adapter.id, reason=str(error)))
                continue
            if card is not None:
                self._shelf.keep(card)
                measured += 1
        return MeasureReport(
            measured=measured,
            unchanged=len(here) - measured - len(failed),
            without_file=len(adapters) - len(here),
            failed=tuple(failed),
        )

    def exposures(self, adapter: Adapter, on_progress: OnProgress | None = None) -> list[Exposure]:
        """The pictures behind an adapter's card, made now where they are not kept. Raises AdapterFileError."""
        weight = self._stylus.preferences.weights([adapter.id]).get(adapter.id, adapter.weight)
        return self._exposed(Subject(adapter, _sha256(adapter), weight), on_progress)

    def _adapters(self, only: Sequence[str]) -> list[Adapter]:
        if only:
            adapters = self._stylus.catalog.require(only)
            for adapter in adapters:
                if adapter.base_model != self.family:
                    raise InvalidInput(
                        f"{adapter.id} is made for {adapter.base_model or 'an unknown base model'}, and {self.family} "
                        "is measured: pass --base-model, or leave it out."
                    )
            return adapters
        blocked = self._stylus.settings.content_filter is ContentFilter.BLOCK
        return [
            adapter
            for adapter, _ in self._stylus.catalog.all()
            if adapter.base_model == self.family
            and not (adapter.hidden or adapter.missing)
            and not (blocked and adapter.rating is not Rating.GENERAL)
        ]

    def _card(
        self, adapter: Adapter, weight: float, before: ReportCard | None, on_progress: OnProgress | None
    ) -> ReportCard | None:
        """None: the card before is still right."""
        status = Path(adapter.file or "").stat()
        card = hashlib.sha256(json.dumps([_words(adapter), _texts(adapter)]).encode()).hexdigest()
        now = Measured(adapter.id, self._yardstick, "", status.st_size, status.st_mtime_ns, weight, card)
        if before is not None and replace(before.measured, sha256="") == now:
            return None
        now = replace(now, sha256=_sha256(adapter))
        exposed = self._exposed(Subject(adapter, now.sha256, weight), on_progress)
        return ReportCard(now, self._effect(exposed), self._said(adapter))

    def _exposed(self, subject: Subject, on_progress: OnProgress | None) -> list[Exposure]:
        def report(progress: Progress) -> None:
            if on_progress is not None:
                on_progress(progress)

        exposed = []
        for number, probe in enumerate(self._probes):
            # cut where the text encoder stops reading, as in any generation
            text = wording(probe.text(_words(subject.adapter)), [], self._loaded.kind.reads).text
            seed = number * self._images
            try:
                with_it = self._shots.take(text, self._images, seed, subject, report)
            except BrokenDown:
                with_it = None
            worded = self._shots.take(text, self._images, seed, None, report)
            plain = self._shots.take(probe.plain, self._images, seed, None, report)
            exposed.append(Exposure(text, probe.subject, plain, worded, with_it))
        return exposed

    def _effect(self, exposed: Sequence[Exposure]) -> Effect:
        broken = [
            each.with_it is None or is_broken(picture, without)
            for each in exposed
            for picture, without in zip(each.with_it or each.worded, each.worded, strict=True)
        ]
        whole = [each for each in exposed if each.with_it is not None] or exposed
        plain, worded, with_it = (
            np.stack([self._features.images(pictures) for pictures in part])
            for part in zip(*((each.plain, each.worded, each.with_it or each.worded) for each in whole), strict=True)
        )
        before, after = list[bool](), list[bool]()
        for n, each in enumerate(whole):
            if each.subject is not None:
                subjects = self._features.texts([each.subject, *OTHER_SUBJECTS[self.family]])
                before += shows(worded[n], subjects).tolist()
                after += shows(with_it[n], subjects).tolist()
        return effect(
            plain,
            worded,
            with_it,
            broken=float(np.mean(broken)),
            kept=kept(np.array(before, bool), np.array(after, bool)),
        )

    def _said(self, adapter: Adapter) -> Float32[np.ndarray, " d"] | None:
        texts = _texts(adapter)
        return pointing(self._features.texts(texts), self._features.texts([NEUTRAL])[0]) if texts else None


def sheet(exposed: Sequence[Exposure], adapter: Adapter, card: ReportCard, verdict: Verdict) -> Image.Image:
    """The pictures behind a card with its numbers, for people."""
    numbers = card.effect
    lines = [
        f"weight {card.measured.weight:g}: {verdict.trouble or 'nothing is wrong'}",
        f"strength {numbers.strength:.2f}, consistency {numbers.consistency:.2f}, "
        f"strangeness {numbers.strangeness:.2f}",
        f"broken {numbers.broken:.2f}, subject kept {numbers.kept:.2f}"
        + ("" if verdict.agreement is None else f", agreement with its card {verdict.agreement:.2f}"),
    ]
    black = Image.new("RGB", exposed[0].worded[0].size)
    rows = [
        Row(
            f"{adapter.name} ({adapter.id})" if n == 0 else each.text,
            [each.text, *lines] if n == 0 else [],
            [each.worded, each.with_it or [black] * len(each.worded)],
        )
        for n, each in enumerate(exposed)
    ]
    return contact_sheet(["without", "with"], rows)


def _words(adapter: Adapter) -> tuple[str, ...]:
    """The trigger words that Stylus would send for a task of the adapter's name."""
    return serving(adapter, adapter.name)


def _texts(adapter: Adapter) -> list[str]:
    """What the card says, in pieces that a text encoder reads whole."""
    return [text for text in (adapter.name, ", ".join(_words(adapter)), adapter.description[:LONGEST]) if text.strip()]


def _sha256(adapter: Adapter) -> str:
    try:
        with Path(adapter.file or "").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AdapterFileError(f"{adapter.file} can't be read: {reason(error)}") from error
