"""The four tools. Their descriptions are all that an agent knows of them: what each is for, where it ends, what
follows."""

import hashlib
import json
import time
from typing import Annotated, Any, Literal

import anyio
import anyio.from_thread
import anyio.to_thread
import mcp_types as types
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from pydantic import Field
from pydantic_core import to_jsonable_python

from server import results
from server.auth import owner, require
from server.backend import Backend
from server.gallery import GALLERY
from server.images import MOST_BYTES, input_id
from server.results import ComposeResult, SearchResult
from server.schema import tool
from stylus.errors import DatabaseUnavailable, InvalidInput
from stylus.records import (
    BaseModelFamily,
    Category,
    Composition,
    Filters,
    JobRecord,
    JobStatus,
    MaskMode,
    Method,
    OnProgress,
    Pick,
    Policy,
    Progress,
    Rating,
)

MOST_TEXT = MOST_BYTES * 4 // 3 + 100
"""Characters of a picture as base64."""
FINISHED = (JobStatus.DONE, JobStatus.CANCELLED)

SIGN_OF_LIFE = 5.0
"""Seconds between progress notifications when nothing moved: some clients reset their timeout on each."""

Caller = Context[Backend, Any]
Prompt = Annotated[str, Field(min_length=1, max_length=10_000, description="What the picture should show")]
Family = Annotated[BaseModelFamily | None, Field(description="Base model family; default: the server's")]

READS = types.ToolAnnotations(read_only_hint=True, open_world_hint=False)
ADDS = types.ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
ENDS = types.ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)


def all_tools() -> list[Tool]:
    return [
        tool(search_adapters, "Search adapters", READS, structured=True),
        tool(compose_adapters, "Compose adapters", READS, structured=True),
        tool(generate_image, "Generate image", ADDS, structured=False, page=GALLERY),
        tool(job, "Wait for a job", ENDS, structured=False),
    ]


def search_adapters(
    ctx: Caller,
    query: Annotated[str, Field(min_length=1, max_length=10_000, description="A subject, style or scene, in words")],
    base_model: Annotated[BaseModelFamily | None, Field(description="Only adapters of this family")] = None,
    category: Annotated[Category | None, Field(description="Only adapters of this category")] = None,
    limit: Annotated[int, Field(ge=1, le=50)] = 10,
    mature: Annotated[bool, Field(description="Also adapters rated mature")] = False,
) -> SearchResult:
    """Finds LoRA adapters in the catalog by meaning, best first, with recommended weight and trigger words. Use it to
    choose adapters yourself or to see what there is; generate_image finds its own when you pass none. It searches the
    local catalog only and downloads nothing. Pass chosen ids to generate_image(adapters=[{id, weight}])."""
    ratings = frozenset(Rating) if mature else frozenset({Rating.GENERAL})
    filters = Filters(base_model=base_model, category=category, ratings=ratings)
    matches = ctx.request_context.lifespan_context.stylus.search(query, filters=filters, limit=limit)
    note = None if matches else "Nothing found. Drop a filter, or generate without adapters."
    return SearchResult(matches=[results.found(match) for match in matches], note=note)


async def compose_adapters(
    ctx: Caller,
    prompt: Prompt,
    base_model: Family = None,
    max_adapters: Annotated[int | None, Field(ge=0, le=20, description="In the whole composition")] = None,
    temperature: Annotated[float, Field(ge=0, le=2, description="Above 0: more varied choices")] = 0.0,
    seed: Annotated[
        int | None, Field(ge=0, le=2**31 - 1, description="With temperature: same seed, same choice")
    ] = None,
    policy: Annotated[
        Policy, Field(description="Who chooses: the composer, or for comparisons a part of it alone, or nobody")
    ] = Policy.COMPOSER,
) -> ComposeResult:
    """Splits a prompt into tasks and chooses the adapters and weights that render each, with reasons. Use it to see or
    show the choice before drawing. It draws nothing: pass composition_id to generate_image. Keywords left without an
    adapter are fine: the base model draws them."""
    backend, caller, told = ctx.request_context.lifespan_context, owner(), _Told(ctx)

    def compose() -> ComposeResult:
        composition = backend.stylus.compose(
            prompt,
            base_model=base_model,
            max_adapters=max_adapters,
            temperature=temperature,
            seed=seed,
            policy=policy,
            on_progress=_while_wanted(told),
        )
        return results.composed(_claimed(backend, composition, caller))

    return await anyio.to_thread.run_sync(compose, limiter=backend.composing)


async def generate_image(
    ctx: Caller,
    prompt: Annotated[Prompt | None, Field(description="What to draw; or pass composition_id")] = None,
    composition_id: Annotated[str | None, Field(max_length=100, description="From compose_adapters")] = None,
    adapters: Annotated[
        list[Pick] | None,
        Field(
            max_length=20,
            description="Your own choice instead of an automatic one; [] draws without adapters. With composition_id: "
            "new weights for adapters of it, 0 leaves one out",
        ),
    ] = None,
    base_model: Family = None,
    count: Annotated[int, Field(ge=1, le=64, description="Number of images; image i has seed + i")] = 1,
    seed: Annotated[int | None, Field(ge=0, le=2**53 - 65, description="Same seed, same picture")] = None,
    negative_prompt: Annotated[str, Field(max_length=10_000, description="What to avoid")] = "",
    size: Annotated[
        str | None,
        Field(pattern=r"^\d{2,4}x\d{2,4}$", description="WIDTHxHEIGHT, each a multiple of 8, 64 to 2048"),
    ] = None,
    steps: Annotated[int | None, Field(ge=1, le=200)] = None,
    guidance_scale: Annotated[float | None, Field(ge=0, le=30, description="How closely to follow the prompt")] = None,
    masks: Annotated[
        MaskMode,
        Field(description="all: every adapter in every image; sample: varied subsets; none: no adapter, to compare"),
    ] = MaskMode.ALL,
    method: Annotated[
        Method,
        Field(description="merge: all adapters at once; switch: in turns; composite: each on its own, slower"),
    ] = Method.MERGE,
    image: Annotated[
        str | None, Field(max_length=MOST_TEXT, description="To start from: base64 of a picture, or an id")
    ] = None,
    mask: Annotated[
        str | None, Field(max_length=MOST_TEXT, description="White is drawn anew: base64 or id; needs image")
    ] = None,
    strength: Annotated[float | None, Field(gt=0, le=1, description="How much of image may change")] = None,
    hires: Annotated[bool, Field(description="A second pass at twice the size")] = False,
    control: Annotated[bool, Field(description="First of 2 or more images without adapters, to compare")] = False,
    request_id: Annotated[
        str | None,
        Field(pattern=r"^[^\x00-\x1f]{1,200}$", description="Your own text; repeat it to retry without drawing twice"),
    ] = None,
) -> types.CallToolResult:
    """Draws images for a prompt or a composition with the adapters that fit, and returns them with what made them. Pass
    either prompt (adapters are chosen for it, or pass your own) or composition_id. If it takes longer than about 40
    seconds it answers status "running" and a job_id: call job to wait, do not start it again. Full-size PNG files are
    at the stylus://images/ URIs in the answer."""
    asked = _digest({name: value for name, value in locals().items() if name not in ("ctx", "request_id")})
    backend, caller = ctx.request_context.lifespan_context, owner()
    require("generate")
    end, told = time.monotonic() + backend.wait, _Told(ctx)

    def submit() -> JobRecord:
        if request_id is not None and (earlier := backend.jobs.find(request_id, caller)) is not None:
            return _same(earlier, request_id, asked)
        wanted = _while_wanted(told)
        composition = _composition(backend, prompt, composition_id, adapters, base_model, caller, wanted)
        request = backend.stylus.request(
            composition,
            seed=seed,
            count=count,
            masks=masks,
            method=method,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance_scale=guidance_scale,
            image=None if image is None else input_id(backend.stylus, image, caller),
            mask=None if mask is None else input_id(backend.stylus, mask, caller, mask=True),
            strength=strength,
            hires=hires,
            control=control,
            **_size(size),
        )
        return _same(backend.jobs.submit(request, request_id, owner=caller, asked=asked), request_id, asked)

    composes = prompt is not None and adapters is None
    started = await anyio.to_thread.run_sync(submit, limiter=backend.composing if composes else None)
    try:
        return await _followed(told, backend, started.id, caller, end)
    except anyio.get_cancelled_exc_class():
        # The client does not want it any more; a server that stops leaves the job on the queue.
        if not backend.closing.is_set():
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(backend.jobs.cancel, started.id, caller)
        raise


async def job(
    ctx: Caller,
    id: Annotated[str, Field(min_length=1, max_length=100, description="job_id from generate_image")],
    action: Annotated[
        Literal["wait", "status", "cancel"], Field(description="wait: up to 40 s for the result; status: at once")
    ] = "wait",
) -> types.CallToolResult:
    """Waits for a generation that generate_image left running, and returns its images once they are there. Call it
    again while the answer says running. It can also look at the status without waiting, or cancel the job, which ends
    it within a step."""
    backend, caller = ctx.request_context.lifespan_context, owner()
    if action == "cancel":
        require("generate")
    if action == "wait":
        return await _followed(_Told(ctx), backend, id, caller, time.monotonic() + backend.wait)
    act = backend.jobs.cancel if action == "cancel" else backend.jobs.get
    return await anyio.to_thread.run_sync(lambda: results.job_result(act(id, caller), backend.shown))


def _claimed(backend: Backend, composition: Composition, caller: str) -> Composition:
    """The caller's own, if callers are told apart."""
    if caller:
        backend.stylus.history.claim(composition.id, caller)
    return composition


def _composition(
    backend: Backend,
    prompt: str | None,
    composition_id: str | None,
    adapters: list[Pick] | None,
    base_model: BaseModelFamily | None,
    caller: str,
    on_progress: OnProgress,
) -> Composition:
    if prompt is not None and composition_id is None:
        composition = backend.stylus.compose(prompt, base_model=base_model, picks=adapters, on_progress=on_progress)
        return _claimed(backend, composition, caller)
    if composition_id is None or prompt is not None:
        raise InvalidInput("Pass either prompt or composition_id, and not both.")
    if base_model is not None:
        raise InvalidInput("A composition has its base model: pass composition_id without one.")
    return backend.stylus.history.reweighed(composition_id, adapters, caller)


def _digest(arguments: dict[str, Any]) -> str:
    """Of the arguments as they were sent: the job's own record has a cleaned prompt, and weights and a seed that the
    client may have left to us."""
    return hashlib.sha256(json.dumps(to_jsonable_python(arguments), sort_keys=True).encode()).hexdigest()


def _same(found: JobRecord, request_id: str | None, asked: str) -> JobRecord:
    """The job that a retry means. Raises InvalidInput if the arguments show that it means another one."""
    if found.asked not in (None, asked):
        made = found.request
        raise InvalidInput(
            f"request_id {request_id!r} belongs to job {found.id}, which draws {made.count} image(s) of "
            f"{results.one_line(made.composition.prompt, 80)!r} and was asked for with other arguments than these. "
            "Use a new request_id for a new generation."
        )
    return found


def _size(size: str | None) -> dict[str, int]:
    if size is None:
        return {}
    width, _, height = size.partition("x")
    sides = {"width": int(width), "height": int(height)}
    for name, side in sides.items():
        if not 64 <= side <= 2048 or side % 8:
            raise InvalidInput(f"size {size!r}: the {name} {side} is not a multiple of 8 from 64 to 2048.")
    return sides


async def _followed(told: "_Told", backend: Backend, id: str, caller: str, end: float) -> types.CallToolResult:
    """Waits for the job, until `end` on the clock of `time.monotonic`, and passes its progress on. Raises ToolError if
    it failed.

    Looks at the job again and again from the event loop, so that waiting calls hold no thread each.
    """
    pause = 0.05
    while True:
        late = time.monotonic() >= end
        try:
            record = await anyio.to_thread.run_sync(backend.jobs.get, id, caller)
        except DatabaseUnavailable as error:
            if late or backend.closing.is_set():
                raise DatabaseUnavailable(f"{error} Job {id} keeps its place: call job to wait for it.") from error
        else:
            if record.status is JobStatus.FAILED:
                raise ToolError(f"Job {id} failed: {record.error}")
            if record.status in FINISHED or late:
                return await anyio.to_thread.run_sync(results.job_result, record, backend.shown)
            await told.tell(record.progress, results.progress_line(record))
        await anyio.sleep(pause)
        pause = min(0.25, pause * 1.2)


class _Told:
    """Progress as the protocol wants it: a number that only grows. Each stage counts 1."""

    def __init__(self, ctx: Caller) -> None:
        self._ctx = ctx
        self._stages: list[str] = []
        self._value = -1.0
        self._at = 0.0

    async def tell(self, progress: Progress, line: str) -> None:
        if self._stages[-1:] != [progress.stage]:
            self._stages.append(progress.stage)
        value = len(self._stages) - 1 + (progress.done / progress.total if progress.total else 0.0)
        if value <= self._value and time.monotonic() - self._at < SIGN_OF_LIFE:
            return
        self._value, self._at = max(value, self._value + 0.001), time.monotonic()
        await self._ctx.report_progress(self._value, None, line)


def _while_wanted(told: _Told) -> OnProgress:
    """For work in a thread of anyio's that may take a minute, as asking a language model does: tells its progress, and
    ends it once the client has cancelled the call."""

    def on_progress(progress: Progress) -> None:
        anyio.from_thread.check_cancelled()
        anyio.from_thread.run(told.tell, progress, progress.stage)

    return on_progress
