"""Adapters of Civitai, by its public REST API (developer.civitai.com: models, model-versions, by-hash, pagination).

Each version of a model is a card `civitai:MODEL@VERSION`, as in Civitai's own AIR identifiers; versions share a group.
No weights come with it: a card says where they are and which hash they must have, and `fetching` gets them when they
are first used. Everything in the answers is text from strangers, and any field may be missing or of another type.
"""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from stylus.errors import AdapterFileError, InvalidInput, NotFound, StorageError
from stylus.records import BaseModelFamily, Card, OnProgress, Progress
from stylus.safetensors_header import read_header
from stylus.settings import Settings
from stylus.sources.civitai_cards import KINDS, as_list, card, mapping, weight_files
from stylus.sources.folder import WeightFile, walk
from stylus.text import clean_line
from stylus.web import Web

OnProblem = Callable[[str, str], None]
"""Told of each model, version or file that could not be used, with the reason; the rest goes on."""

HOSTS = frozenset({"civitai.com", "civitai.red", "civitai.green"})
_FAMILY_NAMES = {
    BaseModelFamily.SD15: ("SD 1.5", "SD 1.4"),
    BaseModelFamily.SDXL: ("SDXL 1.0", "Pony", "Illustrious", "NoobAI"),
    BaseModelFamily.FLUX: ("Flux.1 D", "Flux.1 S"),
    BaseModelFamily.SD3: ("SD 3", "SD 3.5", "SD 3.5 Large", "SD 3.5 Medium"),
}
"""What Civitai calls base models, for its own filter."""
_PAGE = 100
_FILES = 32
"""Local files whose cards make a page."""


@dataclass(frozen=True)
class _Target:
    model: int | None = None
    version: int | None = None
    query: str = ""


class Civitai:
    """Reads cards page by page. A page counts as done when the next one is asked for: only then the place is kept from
    which the same search goes on after a stop."""

    def __init__(self, web: Web, places: Path) -> None:
        """`places` is the folder where the cursors of unfinished searches lie."""
        self._web, self._places = web, places
        self._model = lru_cache(256)(self._read_model)

    @classmethod
    def open(cls, settings: Settings) -> "Civitai":
        return cls(open_web(settings), settings.data / "civitai")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._web.close()

    def pages(
        self,
        what: str,
        *,
        family: BaseModelFamily | None = None,
        mature: bool = False,
        most: int | None = None,
        on_problem: OnProblem,
    ) -> Iterator[list[Card]]:
        """The cards of a model (its id or URL), of one version (a URL that names it, or an AIR), or of a search.

        `most` models are read of a search. Raises SourceUnavailable, NotFound or InvalidInput.
        """
        target = _target(what)
        if target.model is None and target.version is not None:
            owner = mapping(self._web.json(f"/api/v1/model-versions/{target.version}")).get("modelId")
            target = _Target(owner if isinstance(owner, int) else None, target.version)
        if target.model is not None:
            yield list(self._cards(self._model(target.model), on_problem, only=target.version))
        elif target.version is not None:
            raise NotFound(f"{self._web.name} does not say which model version {target.version} belongs to.")
        else:
            yield from self._search(target.query, family, mature, most, on_problem)

    def _search(
        self, query: str, family: BaseModelFamily | None, mature: bool, most: int | None, on_problem: OnProblem
    ) -> Iterator[list[Card]]:
        asked: dict[str, Any] = {"query": query, "types": list(KINDS), "nsfw": "true" if mature else "false"}
        if family is not None:
            asked["baseModels"] = _names(family)
        digest = hashlib.sha256(json.dumps([asked, most], sort_keys=True).encode()).hexdigest()
        place = self._places / f"{digest[:16]}.json"
        cursor, seen = _read_place(place)
        while True:
            page = asked | {"limit": min(_PAGE, most - seen) if most is not None else _PAGE}
            try:
                answer = mapping(self._web.json("/api/v1/models", page | ({"cursor": cursor} if cursor else {})))
            except InvalidInput:
                if not cursor:
                    raise
                cursor, seen = "", 0  # a cursor that is no longer known: from the start, known cards cost little
                continue
            models = [mapping(item) for item in as_list(answer.get("items"))]
            yield [one for model in models for one in self._cards(model, on_problem)]
            seen += len(models)
            following = str(mapping(answer.get("metadata")).get("nextCursor") or "")
            if following in ("", cursor) or not models or (most is not None and seen >= most):
                place.unlink(missing_ok=True)
                return
            cursor = following
            _write_place(place, cursor, seen)

    def by_hash(
        self, folder: Path, *, on_problem: OnProblem, on_progress: OnProgress | None = None
    ) -> Iterator[list[Card]]:
        """The cards of local files that Civitai knows by their SHA-256; each file is read whole."""
        files = walk(folder, lambda path, why: on_problem(str(path), why)).files
        page: list[Card] = []
        for done, file in enumerate(files, start=1):
            try:
                page.append(self._known(file))
            except (AdapterFileError, NotFound, OSError) as error:
                on_problem(str(file.path), str(error))
            if on_progress is not None:
                on_progress(Progress(stage="hash", done=done, total=len(files)))
            if len(page) == _FILES or done == len(files):
                yield page
                page = []

    def _known(self, file: WeightFile) -> Card:
        header = read_header(file.path)
        with file.path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        try:
            version = mapping(self._web.json(f"/api/v1/model-versions/by-hash/{digest}"))
        except NotFound as error:
            raise NotFound(f"{self._web.name} knows no such file. `stylus ingest folder` reads it as it is.") from error
        number, model = version.get("modelId"), mapping(version.get("model"))
        if isinstance(number, int):
            with contextlib.suppress(NotFound):  # taken down: what the version says of its model is left
                model = self._model(number)
        others = [mapping(other) for other in as_list(model.get("modelVersions"))]
        versions = [other for other in others if other.get("id") != version.get("id")]
        whole = {**model, "id": number, "modelVersions": [version, *versions]}
        cards = self._cards(whole, lambda *_: None, only=version.get("id"))
        found = next((one for one in cards if one.sha256 == digest), None)
        if found is None:
            raise NotFound(
                f"{self._web.name} knows the file, but not as a LoRA. `stylus ingest folder` reads it as it is."
            )
        shapes = {
            "base_model": header.family or found.base_model,
            "kind": header.kind,
            "rank": header.rank,
            "bytes": header.bytes,
        }
        return found.model_copy(update={"file": str(file.path), **shapes})

    def card_of(self, id: str, download: str | None, family: BaseModelFamily | None) -> Card:
        """The card, with hash and address, of an adapter that came from elsewhere without them (StylusDocs): of the
        version that `id` or `download` names, else of the first one for the base model. Raises NotFound."""
        model = re.match(r"civitai:(\d+)", id)
        version = re.search(r"@(\d+)", id) or re.search(r"/api/download/models/(\d+)", download or "")
        if model is None:
            raise NotFound(f"{id} names no model of {self._web.name}.")
        only = int(version[1]) if version else None
        cards = list(self._cards(self._model(int(model[1])), lambda *_: None, only=only))
        fitting = [one for one in cards if one.download and one.sha256 and family in (None, one.base_model)]
        if not fitting:
            raise NotFound(f"{self._web.name} offers no weights of {id} any more.")
        return next((one for one in fitting if one.id == id), fitting[0])

    def _read_model(self, number: int) -> Mapping[str, Any]:
        return mapping(self._web.json(f"/api/v1/models/{number}"))

    def _cards(self, model: Mapping[str, Any], on_problem: OnProblem, only: int | None = None) -> Iterator[Card]:
        number, kind = model.get("id"), KINDS.get(str(model.get("type")))
        if not isinstance(number, int) or kind is None:
            on_problem(
                f"civitai:{number}", f"It is of type {clean_line(str(model.get('type')), 50)!r}: no LoRA. Left out."
            )
            return
        versions = [mapping(version) for version in as_list(model.get("modelVersions"))]
        for version in versions:
            if not isinstance(version.get("id"), int) or only not in (None, version["id"]):
                continue
            files = weight_files(version)
            if not files:
                on_problem(f"civitai:{number}@{version['id']}", "It has no safetensors file (any more). Left out.")
                continue
            described = self._with_prompts(version)
            for n, file in enumerate(files):
                try:
                    yield card(
                        model, described, file, kind, first=n == 0, alone=len(versions) == 1, owns=self._web.owns
                    )
                except ValidationError as error:
                    on_problem(f"civitai:{number}@{version['id']}", f"Left out: {error.errors()[0]['msg']}.")

    def _with_prompts(self, version: Mapping[str, Any]) -> Mapping[str, Any]:
        """Lists of models leave out how the pictures were made; a version asked for by itself tells."""
        images = [mapping(image) for image in as_list(version.get("images"))]
        if any(image.get("meta") for image in images) or not any(image.get("hasMeta") for image in images):
            return version
        try:
            fuller = mapping(self._web.json(f"/api/v1/model-versions/{version['id']}"))
        except (NotFound, InvalidInput):
            return version
        return {**version, "images": fuller.get("images") or version["images"]}


def open_web(settings: Settings, sleep: Callable[[float], None] = time.sleep) -> Web:
    return Web(
        "Civitai",
        settings.civitai_url,
        hosts=HOSTS,
        token=settings.civitai_key,
        remedy="Many models ask for a key: make one in the account settings of civitai.com and set STYLUS_CIVITAI_KEY.",
        sleep=sleep,
    )


def _target(what: str) -> _Target:
    """What a person means: 245675, civitai:245675@274000, an AIR, a URL of the site or of its API; else a search."""
    text = what.strip()
    if not text:
        raise InvalidInput("Say what to look for: words, the id of a model, or its address on Civitai.")
    if found := re.fullmatch(r"(?:.*civitai:)?(\d{1,12})(?:@(\d{1,12}))?", text):
        return _Target(int(found[1]), int(found[2]) if found[2] else None)
    if not re.match(r"https?://", text):
        return _Target(query=text[:500])
    if found := re.search(r"/api/download/models/(\d{1,12})|/model-versions/(\d{1,12})", text):
        return _Target(version=int(found[1] or found[2]))
    if found := re.search(r"/models/(\d{1,12})(?:.*[?&]modelVersionId=(\d{1,12}))?", text):
        return _Target(int(found[1]), int(found[2]) if found[2] else None)
    raise InvalidInput(f"{text[:200]!r} is no address of a model: it looks like https://civitai.com/models/245675.")


def _names(family: BaseModelFamily) -> Sequence[str]:
    if family not in _FAMILY_NAMES:
        raise InvalidInput(f"Civitai has no adapters for {family}. Choose one of {', '.join(_FAMILY_NAMES)}.")
    return _FAMILY_NAMES[family]


def _read_place(path: Path) -> tuple[str, int]:
    """Cursor and number of models that a search had come to; from the start where nothing readable is kept."""
    try:
        content = mapping(json.loads(path.read_text("utf-8")))
        return str(content["cursor"]), int(content["models"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", 0


def _write_place(path: Path, cursor: str, models: int) -> None:
    # written half, it counts as none: the search starts over, which costs time and nothing else
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cursor": cursor, "models": models}), "utf-8")
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror}. Set STYLUS_DATA to another folder.") from error
