"""`stylus doctor`: every setting with its value, where it comes from, and what works with it."""

import shutil
from collections.abc import Callable
from typing import Literal

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from stylus.errors import StylusError
from stylus.records import BaseModelFamily, Record
from stylus.settings import Settings

LOW_DISK = 2 * 2**30
"""Bytes. Below this a database and a few hundred pictures will soon not fit."""


Status = Literal["ok", "warning", "failed"]
Finding = tuple[Status, str]


class Check(Record):
    name: str
    value: str
    origin: Literal["environment", "default"]
    status: Status
    finding: str


def examine(settings: Settings) -> list[Check]:
    """One check per setting, in the order of Settings, by really using what the setting names."""
    return [_examine_setting(settings, name, field) for name, field in Settings.model_fields.items()]


def _examine_setting(settings: Settings, name: str, field: FieldInfo) -> Check:
    value = getattr(settings, name)
    status: Status
    try:
        status, finding = _PROBES[name](settings) if name in _PROBES else ("ok", field.description or "")
    except StylusError as error:
        status, finding = "failed", str(error)
    return Check(
        name=f"STYLUS_{name.upper()}" if field.validation_alias is None else "OTEL_EXPORTER_OTLP_ENDPOINT",
        value=_masked(value),
        origin="environment" if name in settings.model_fields_set else "default",
        status=status,
        finding=finding,
    )


def _masked(value: object) -> str:
    if isinstance(value, SecretStr):
        return "****"
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "-"
    return "-" if value is None else str(value)


def _database(settings: Settings) -> Finding:
    from stylus.catalog import Catalog
    from stylus.database import Database

    with Database.open(settings) as database:
        status = database.status()
        counts = Catalog(database).count()
    held = ", ".join(f"{count} {family or 'of unknown base model'}" for family, count in counts.items())
    facts = ", ".join(f"{name} {value}" for name, value in status.items())
    if not counts:
        return "warning", f"{facts}; no adapters yet: `stylus ingest folder PATH` or `stylus ingest pocket`"
    return "ok", f"{facts}; adapters: {held}"


def _data(settings: Settings) -> Finding:
    # the folder is made by the database check, which comes first
    free = shutil.disk_usage(settings.data if settings.data.exists() else settings.data.anchor).free
    gigabytes = f"{free / 2**30:.1f} GiB free"
    return ("warning", f"only {gigabytes}: make room") if free < LOW_DISK else ("ok", gigabytes)


def _store(settings: Settings) -> Finding:
    from stylus.generation.store import check

    check(settings.store_url)
    return "ok", f"{settings.store_url} (nothing was written)"


def _embedder(settings: Settings) -> Finding:
    from stylus.embedder import Embedder

    embedder = Embedder.open(settings)
    return "ok", f"{embedder.name}, {embedder.queries(['a test']).shape[1]} dimensions"


def _reranker(settings: Settings) -> Finding:
    from stylus.reranker import open_reranker

    reranker = open_reranker(settings)
    return "ok", f"{reranker.name} (not loaded)" if reranker else "none: policy reranker needs one"


def _composer(settings: Settings) -> Finding:
    from stylus.composer import open_composer

    return "ok", f"{open_composer(settings).name} (built, not called)"


def _vision(settings: Settings) -> Finding:
    from stylus.refiner import open_vision

    if not settings.vision:
        return "ok", "none: cards stand as their authors wrote them; with a model that sees pictures, `stylus refine`"
    return "ok", f"{open_vision(settings).model_name} (built, not called); `stylus refine` uses it"


def _checkpoints(settings: Settings) -> Finding:
    from stylus.generation.checkpoints import Checkpoints

    checkpoints = Checkpoints(settings)
    names = ["pocket", *settings.checkpoints]
    for configured in names:
        family, _, name = configured.partition(":")
        checkpoints.open(BaseModelFamily(family), name or None)
    return "ok", f"load: {', '.join(names)}"


def _device(settings: Settings) -> Finding:
    from stylus.generation.checkpoints import pick_dtype
    from stylus.model_loading import pick_device

    device = pick_device(settings.device)
    return "ok", f"{device}, {str(pick_dtype(settings, device)).removeprefix('torch.')}"


def _civitai_url(settings: Settings) -> Finding:
    from stylus.sources.civitai import open_web

    with open_web(settings) as web:
        return "ok", f"{web.name} (not asked); a key is {'' if settings.civitai_key else 'not '}set"


_PROBES: dict[str, Callable[[Settings], Finding]] = {
    "database_url": _database,
    "data": _data,
    "store": _store,
    "embedder": _embedder,
    "composer": _composer,
    "vision": _vision,
    "reranker": _reranker,
    "checkpoints": _checkpoints,
    "device": _device,
    "civitai_url": _civitai_url,
}
