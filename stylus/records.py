"""The values that flow through Stylus, in the order of the data flow (README, picture). All are frozen.

card -> adapter -> match -> task -> composition -> request (+ mask) -> schedule -> image; beside them, the job.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseModelFamily(StrEnum):
    """Checkpoints of one family share tensor shapes, so that an adapter fits all of them."""

    POCKET = "pocket"
    SD15 = "sd15"
    SDXL = "sdxl"
    FLUX = "flux"
    SD3 = "sd3"


class Kind(StrEnum):
    """How an adapter's file stores its weight change."""

    LORA = "lora"
    LOCON = "locon"
    LOHA = "loha"
    LOKR = "lokr"
    DORA = "dora"


class Category(StrEnum):
    """What an adapter is for: exactly one (paper, section 3.1)."""

    CONCEPT = "concept"
    STYLE = "style"
    CHARACTER = "character"
    CELEBRITY = "celebrity"
    POSE = "pose"
    ACTION = "action"
    CLOTHING = "clothing"
    BACKGROUND = "background"
    BUILDING = "building"
    VEHICLE = "vehicle"
    ANIMAL = "animal"
    OBJECT = "object"


class Rating(StrEnum):
    """Content rating: who may see what the adapter makes."""

    GENERAL = "general"
    MATURE = "mature"


class ContentFilter(StrEnum):
    """What happens to pictures that adapters rated mature had a part in, or that a filter of the owner's finds unfit:
    nothing, a flag in the record, or no picture."""

    OFF = "off"
    FLAG = "flag"
    BLOCK = "block"


AdapterId = Annotated[str, Field(pattern=r"^[a-z]+:[^\s\x00-\x1f]{1,200}$")]
"""`source:id`, as `civitai:245675`, `file:sha256prefix`, `hub:owner/name`, `pocket:star`."""

Weight = Annotated[float, Field(ge=-4.0, le=4.0, allow_inf_nan=False)]
"""Strength of an adapter: 1 is as trained, 0 is off, below 0 pushes away from the concept."""

DEFAULT_WEIGHT = 0.8
"""The recommended weight where neither card nor refiner gives one (paper, section 3.1)."""


class Example(Record):
    """An example image of a card: where it lies (a local path, or a URL for remote cards) and how it was made."""

    image: str
    prompt: str = ""


class Card(Record):
    """An adapter as its source describes it. Text comes from strangers: clean of control characters and capped in
    length, but true only by luck. `None` means that the source does not say."""

    id: AdapterId
    name: str = Field(min_length=1, max_length=200)
    description: str = Field("", max_length=20_000)
    tags: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    base_model: BaseModelFamily | None = None
    kind: Kind = Kind.LORA
    category: Category | None = None
    weight: Weight | None = None
    rating: Rating = Rating.GENERAL
    examples: tuple[Example, ...] = ()
    author: str | None = None
    licence: str | None = None
    url: str | None = None
    file: str | None = None
    """Path of the weight file on this machine; None until it is downloaded."""
    sha256: str | None = None
    bytes: int | None = Field(None, ge=0, lt=2**63)
    rank: int | None = Field(None, ge=1, lt=2**31)
    """Of most of its layers."""
    download: str | None = None
    """Where the weights come from when they are first used: on the host of the card's source, else it is refused."""
    group: str | None = Field(None, max_length=300)
    """What the versions of one model share, as `civitai:245675`; None: the adapter stands alone."""

    @property
    def source(self) -> str:
        return self.id.partition(":")[0]

    def content_hash(self) -> str:
        """Hex SHA-256 of everything that refining and embedding depend on: unchanged means no work to do again."""
        elsewhere = {"file", "url", "sha256", "bytes", "rank", "download", "group", "missing"}
        content = self.model_dump(mode="json", exclude=elsewhere)
        for example in content["examples"]:
            if "://" not in example["image"]:
                # a picture moves and is renamed with the file that it lies beside
                example["image"] = Path(example["image"]).name.removeprefix(Path(self.file or "").stem)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Adapter(Card):
    """A card after the refiner, as the catalog keeps it: description, category and weight are settled."""

    category: Category = Category.CONCEPT
    weight: Weight = DEFAULT_WEIGHT
    refined: bool = False
    """True when a vision model wrote description, category and weight; False when they come from the card alone."""
    quality: str | None = None
    """Why the adapter should not be picked (a flag of the refiner or of the file check); None is fine."""
    hidden: bool = False
    missing: bool = False
    """The file was here once and is gone: kept for the day it comes back."""


class Filters(Record):
    """Which adapters may be found at all. Part of the query, before its limit."""

    base_model: BaseModelFamily | None = None
    category: Category | None = None
    ratings: frozenset[Rating] = frozenset({Rating.GENERAL})
    kinds: frozenset[Kind] | None = None
    licences: frozenset[str] | None = None
    """As the cards name them, whatever the case."""
    has_file: bool | None = None
    """Whether the weights lie on this machine."""
    usable: bool | None = None
    """Whether they lie here or can be fetched when they are first used."""
    flagged: bool = False
    """True also finds adapters with a quality flag."""
    hidden: bool = False
    """True also finds hidden ones: for whoever tends the catalog, never for a composer."""


class Match(Record):
    """An adapter that the retriever found, best first."""

    adapter: Adapter
    score: float
    """What the list is sorted by: fused ranks in (0, 1], where 1 is first in every list."""
    prompt_score: float
    """Cosine similarity to the whole prompt, in [-1, 1]; 0 while the adapter has no vectors."""
    keyword_scores: Mapping[str, float] = {}
    """Cosine similarity to each keyword, in [-1, 1]; empty while the adapter has no vectors."""
    lexical_score: float = 0.0
    """BM25 of the card for the whole prompt; 0 where they share no word or too little to matter."""
    folded: tuple[AdapterId, ...] = ()
    """Near-duplicates that the search found as well and that this one stands for."""
    why: str = ""
    """One line for people: the evidence that weighed most."""


class Choice(Record):
    """One adapter of a task. `weight` is before averaging within the task (paper, section 3.4)."""

    adapter_id: AdapterId
    weight: Weight = DEFAULT_WEIGHT
    reason: str = ""
    name: str = ""
    category: Category = Category.CONCEPT
    trigger_words: tuple[str, ...] = ()
    """The ones that serve this task, not all that the card lists."""


class Pick(Record):
    """An adapter that the caller chose: whoever passes these is the composer."""

    id: AdapterId
    weight: Weight | None = None
    """None: the adapter's recommended weight."""
    task: str | None = Field(None, min_length=1, max_length=200)
    """Picks of one task are averaged; None: a task of its own."""


class Task(Record):
    """A keyword of the prompt (at most four words) with the adapters that render it; an empty task is fine."""

    keyword: str
    choices: tuple[Choice, ...] = ()


class Usage(Record):
    """What a composition asked of language models, failed ones included. All zero where none was asked."""

    requests: int = Field(0, ge=0)
    input_tokens: int = Field(0, ge=0)
    output_tokens: int = Field(0, ge=0)
    seconds: float = Field(0.0, ge=0)
    cost: float | None = Field(None, ge=0)
    """US dollars; None where nobody knows the model's prices (a local model's are zero only to its owner)."""
    from_cache: bool = False
    """The same question was answered before: nothing was asked now."""

    def __add__(self, other: "Usage") -> "Usage":
        """Of both together; a cost that nobody knows counts as nothing beside one that is known."""
        costs = [usage.cost for usage in (self, other) if usage.cost is not None]
        return Usage(
            requests=self.requests + other.requests,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            seconds=self.seconds + other.seconds,
            cost=sum(costs) if costs else None,
            from_cache=self.from_cache or other.from_cache,
        )


class Policy(StrEnum):
    """Who chooses the adapters: the composer, or one of its stages alone for the paper's ablation (section 4.5)."""

    COMPOSER = "composer"
    RERANKER = "reranker"
    RETRIEVER = "retriever"
    RANDOM = "random"
    NONE = "none"


class Composition(Record):
    """What the composer decided for a prompt (paper, section 3.3). Each adapter appears at most once."""

    id: str
    prompt: str
    base_model: BaseModelFamily
    tasks: tuple[Task, ...]
    composer: str
    """Who chose: `lexical`, a model name, `caller`, or the policy that stood in for a composer."""
    notes: tuple[str, ...] = ()
    """Fallbacks and repairs, for people."""
    usage: Usage = Usage()

    @property
    def choices(self) -> tuple[Choice, ...]:
        """All choices, in task order: the order of the adapter axis of a Schedule."""
        return tuple(choice for task in self.tasks for choice in task.choices)

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Keywords left without an adapter: the base model must draw them alone."""
        return tuple(task.keyword for task in self.tasks if not task.choices)


Mask = tuple[bool, ...]
"""Which of a composition's choices are on, in the order of `Composition.choices`."""


class MaskMode(StrEnum):
    """`all`: every image uses every chosen adapter. `sample`: the paper's crossed masks, one drawn per image.
    `none`: no adapter, the plain checkpoint (the control image)."""

    ALL = "all"
    SAMPLE = "sample"
    NONE = "none"


class Method(StrEnum):
    """How an image's adapters act together: `merge` all at once, averaged in a task, summed over tasks (the paper);
    `switch` one after the other, every few steps; `composite` each on its own, predictions averaged (arXiv
    2402.16843)."""

    MERGE = "merge"
    SWITCH = "switch"
    COMPOSITE = "composite"


PictureId = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A picture to start from, in the image store under the SHA-256 of its bytes. Never a path: callers can be models."""


class Request(Record):
    """Everything that the pixels of a generation depend on, besides files and versions. Replaying it gives the same
    images on the same device: image i uses seed + i."""

    composition: Composition
    count: int = Field(1, ge=1, le=64)
    seed: int = Field(0, ge=0, le=2**63 - 65)
    masks: MaskMode = MaskMode.ALL
    repeat_masks: bool = False
    """Sampled masks may repeat (with replacement) before all were used."""
    control: bool = False
    """The first image has no adapter: the one to compare with."""
    method: Method = Method.MERGE
    switch_every: int = Field(5, ge=1, le=200)
    """Steps that an adapter stays on with method `switch` (5 is best there, arXiv 2402.16843)."""
    budget: float | None = Field(None, gt=0, le=100, allow_inf_nan=False)
    """Most that the weights of a step may sum to, in absolute values; more is scaled down, against saturation."""
    emphasise: bool = False
    """Repeat the keywords without an adapter at the prompt's end, against task blocking."""
    negative_prompt: str = Field("", max_length=10_000)
    width: int | None = Field(None, ge=64, le=2048, multiple_of=8)
    height: int | None = Field(None, ge=64, le=2048, multiple_of=8)
    steps: int | None = Field(None, ge=1, le=200)
    guidance_scale: float | None = Field(None, ge=0.0, le=30.0, allow_inf_nan=False)
    checkpoint: str | None = Field(None, max_length=100)
    """Name of one of several checkpoints of the family (STYLUS_CHECKPOINTS=sd15:NAME=...); None: the family's first."""
    image: PictureId | None = None
    """Image translation: the picture to start from."""
    mask: PictureId | None = None
    """Inpainting: white is drawn anew, black is kept from `image`."""
    strength: float | None = Field(None, gt=0.0, le=1.0)
    """How much of `image` may change (denoising strength)."""
    hires: bool = False
    """Hi-res fix: a second pass at twice the width and height, latents upscaled, denoising strength 0.7 (the paper)."""

    @model_validator(mode="after")
    def _start(self) -> Self:
        if self.mask is not None and self.image is None:
            raise ValueError("a mask needs the image that it belongs to")
        if self.strength is not None and self.image is None:
            raise ValueError("strength says how much of an image may change: pass the image, or leave strength out")
        return self


@dataclass(frozen=True)
class Schedule:
    """The one form in which the generator takes a composition, whatever method made it (README, Decisions)."""

    adapters: tuple[str, ...]
    """Adapter ids: the names of the second axis."""
    weights: Float32[np.ndarray, "rows adapters steps"]
    image_of_row: Int64[np.ndarray, " rows"]
    """Which image a row contributes to; rows of one image share noise and average their predictions."""


class Progress(Record):
    """How far some long work is. `total` 0 means unknown."""

    stage: str
    done: int = 0
    total: int = 0
    preview: str | None = None
    """Path of a rough picture of the first image, now and then, where one was asked for."""


OnProgress = Callable[[Progress], None]
"""Called often, from the thread that does the work; raising `errors.Cancelled` from it stops the work."""


class ImageRecord(Record):
    """A generated image with what made it."""

    id: str
    uri: str
    """`stylus://images/{id}`."""
    location: str
    """Where the PNG lies in the image store: a path, or a URL for a remote store."""
    index: int
    """Position in its request, from 0."""
    seed: int
    prompt: str
    """As sent to the text encoder, trigger words included."""
    width: int
    height: int
    adapters: Mapping[str, float]
    """Adapter id -> effective weight in this image (mean over steps); masked ones are absent."""
    composition_id: str | None = None
    job_id: str | None = None
    created_at: datetime
    seconds: Mapping[str, float] = {}
    """What its whole request took: `checkpoint` (0 when in memory), `load` (adapters) and `generate`."""
    notes: tuple[str, ...] = ()
    """What was done otherwise than asked, for people: adapters left out, sizes corrected, memory that ran out."""
    rating: Rating = Rating.GENERAL
    """The strictest of the adapters used."""
    flagged: bool = False
    """The content filter would rather not show it."""
    provenance: Mapping[str, Any] = {}
    """The JSON record that is also inside the PNG."""


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class QueueCounts(Record):
    """The queue of all workers, in numbers."""

    jobs: Mapping[JobStatus, int]
    """All there ever were, by how they stand."""
    images: int
    """Made ever, those deleted since included."""
    workers: Mapping[int, datetime]
    """Number of a worker -> its last sign of life; silent ones are forgotten after a while."""


class JobRecord(Record):
    """A generation on the queue."""

    id: str
    """Unguessable; whoever knows it may read and cancel the job."""
    status: JobStatus
    request: Request
    progress: Progress
    error: str | None = None
    images: tuple[ImageRecord, ...] = ()
    ahead: int = 0
    """Jobs that are begun before this one, while it is queued."""
    asked: str | None = None
    """What tells a retry of the client from another request under the same name; None: nobody said."""
    cancel_requested: bool = False
    """While it runs: it ends at its next step."""
    created_at: datetime
