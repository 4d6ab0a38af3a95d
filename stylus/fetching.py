"""Weights at first use: an adapter that was catalogued from a remote source gets its file when a picture needs it."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stylus.catalog import Catalog
from stylus.downloads import Remote, download, file_name
from stylus.errors import AdapterFileError, NotFound, SourceUnavailable, StylusError
from stylus.records import Adapter, Card, OnProgress, Progress
from stylus.settings import Settings
from stylus.sources import civitai, hub
from stylus.web import Web


class Fetcher:
    """Brings weight files to `<data>/adapters`. Safe to share between threads and processes."""

    def __init__(self, settings: Settings, catalog: Catalog, sleep: Callable[[float], None] = time.sleep) -> None:
        self._settings, self._catalog, self._sleep = settings, catalog, sleep

    def fetch(self, adapters: Sequence[Adapter], on_progress: OnProgress | None = None) -> list[Adapter]:
        """The same adapters, with files that are here; reports bytes over all of them as stage `download`.

        One that has neither a file nor an address is left as it is: the generator says so if it is needed. Raises
        AdapterFileError or SourceUnavailable, which name the adapter and the reason, and StorageError; what
        `on_progress` raises ends the work.
        """
        wanted = [adapter for adapter in adapters if adapter.download and not _is_here(adapter)]
        known = all(adapter.bytes is not None for adapter in wanted)
        total = sum(adapter.bytes or 0 for adapter in wanted) if known else 0
        before, fetched = 0, dict[str, Adapter]()
        for adapter in wanted:

            def report(progress: Progress, before: int = before) -> None:
                if on_progress is not None:
                    on_progress(progress.model_copy(update={"done": before + progress.done, "total": total}))

            try:
                fetched[adapter.id] = self._fetch(adapter, report)
            except AdapterFileError as error:
                raise AdapterFileError(f"adapter {adapter.id} ({adapter.name}): {error}") from error
            except SourceUnavailable as error:
                raise SourceUnavailable(
                    f"The weights of adapter {adapter.id} ({adapter.name}) are not here yet. {error} "
                    "Or leave it out, now or with `stylus hide ID` from now on."
                ) from error
            except NotFound as error:
                raise AdapterFileError(
                    f"adapter {adapter.id} ({adapter.name}) is no longer offered: {error}"
                ) from error
            before += fetched[adapter.id].bytes or 0
        return [fetched.get(adapter.id, adapter) for adapter in adapters]

    def may_fetch(self, card: Card) -> bool:
        """Whether the card's address lies on its source's own host: all else is refused, whoever wrote it."""
        try:
            with self._web(card) as web:
                return card.download is not None and web.owns(card.download)
        except StylusError:
            return False

    def _fetch(self, adapter: Adapter, report: OnProgress) -> Adapter:
        with self._web(adapter) as web:
            known = adapter
            if adapter.sha256 is None and adapter.source == "civitai":
                places = self._settings.data / "civitai"
                card = civitai.Civitai(web, places).card_of(adapter.id, adapter.download, adapter.base_model)
                known = adapter.model_copy(
                    update={name: getattr(card, name) for name in ("download", "sha256", "bytes")}
                )
            if known.download is None or known.sha256 is None:
                raise AdapterFileError(
                    "it has no checksum, so that its weights could not be verified. Ingest it again."
                )
            if not web.owns(known.download):
                raise AdapterFileError(
                    f"its address {known.download[:200]!r} is not on the host of its source: refused."
                )
            target = (self._settings.data / "adapters" / file_name(known.id, known.sha256)).absolute()
            download(web, Remote(known.download, known.sha256, known.bytes), target, report)
        here = known.model_copy(update={"file": str(target), "bytes": target.stat().st_size, "missing": False})
        if adapter.file is None:  # else another machine of this database has its own copy there
            self._catalog.move([here])
        return here

    def _web(self, card: Card) -> Web:
        if card.source == "civitai":
            return civitai.open_web(self._settings, self._sleep)
        if card.source == "hub":
            return hub.open_web(sleep=self._sleep)
        raise AdapterFileError(f"{card.source} is no source that weights can be fetched from.")


def _is_here(adapter: Adapter) -> bool:
    return adapter.file is not None and Path(adapter.file).is_file()
