"""What is drawn: arms that differ in one stage, and a plan that is the same for all of them (paper, sections 4.1, 4.5).

The authors' code gives its own arm alone the quality suffix, counts the best of several images and never masks its
baselines. Here a plan has one suffix, one set of seeds, one number of images, one guidance and one number of steps, and
there is no way to give an arm its own.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from stylus.errors import InvalidInput
from stylus.evaluation.prompt_sets import EvaluationPrompt
from stylus.records import BaseModelFamily, Composition, MaskMode, Method, Policy, Record, Request

POLICIES = {
    "base": Policy.NONE,
    "stylus": Policy.COMPOSER,
    "reranker": Policy.RERANKER,
    "retriever": Policy.RETRIEVER,
    "random": Policy.RANDOM,
}
"""How reports call who chooses the adapters."""
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 12.0)
"""The paper's grid of the CLIP/FID curve."""
SEEDS_APART = 1000
"""Between the first seeds of two prompts: more than images of one."""
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "realistic-vision": {"suffix": "realistic, high quality", "steps": 35, "guidance": 6.0, "hires": True},
    "counterfeit": {"suffix": "high quality, anime style", "steps": 35, "guidance": 6.0, "hires": True},
}
"""The paper's settings for its two checkpoints (section 4.1, appendix A.3)."""
TRANSLATION_STRENGTH = 0.7
"""Denoising strength of image translation."""


class Arm(Record):
    """One way to choose and combine adapters; `base` has none and is everybody's control."""

    name: str
    policy: Policy
    method: Method = Method.MERGE
    masks: MaskMode = MaskMode.ALL

    @classmethod
    def parse(cls, name: str) -> Self:
        """`base`, or a policy with what differs from all adapters merged: `stylus`, `stylus-switch`,
        `retriever-sample`, `stylus-composite-sample`. Raises InvalidInput."""
        who, *how = name.split("-")
        methods = [method for method in (Method.SWITCH, Method.COMPOSITE) if method in how]
        if who not in POLICIES or len(methods) > 1 or sorted(how) != sorted({*methods, *how} & {*methods, "sample"}):
            raise InvalidInput(
                f"There is no arm {name!r}: name {', '.join(POLICIES)}, with -switch or -composite, with -sample."
            )
        if who == "base" and how:
            raise InvalidInput(f"There is no arm {name!r}: base has no adapters to switch, composite or mask.")
        return cls(
            name=name,
            policy=POLICIES[who],
            method=methods[0] if methods else Method.MERGE,
            masks=MaskMode.SAMPLE if "sample" in how else MaskMode.ALL,
        )


BASE = Arm.parse("base")
ARMS = tuple(
    Arm.parse(name)
    for name in (
        "base",
        "stylus",
        "reranker",
        "retriever",
        "random",
        "stylus-switch",
        "stylus-composite",
        "stylus-sample",
    )
)
"""The paper's arms, the methods beside the paper's merge, and its masks."""


class Mode(StrEnum):
    """What an image starts from: noise, the base's picture of its prompt, or that picture but for its middle."""

    TEXT = "text"
    TRANSLATION = "translation"
    INPAINTING = "inpainting"


class Unit(Record):
    """The images of one prompt in one arm: what is drawn together, and is there whole or not at all."""

    mode: Mode
    arm: Arm
    prompt: int
    """Place in the plan's prompts, from 0."""
    guidance: float

    def path(self, index: int) -> PurePosixPath:
        """Where image `index` lies in the folder of the evaluation; the unit has a folder of its own."""
        return PurePosixPath(
            "images", self.mode, self.arm.name, f"{self.prompt:04d}-g{self.guidance:g}", f"{index}.png"
        )


class Plan(Record):
    """Everything that an evaluation draws. Equal plans are the same evaluation, which is gone on with."""

    prompts: tuple[EvaluationPrompt, ...] = Field(min_length=1)
    arms: tuple[Arm, ...] = ARMS
    images: int = Field(4, ge=1, le=64)
    """Of each prompt in each arm; all count."""
    seed: int = Field(0, ge=0, le=2**32)
    base_model: BaseModelFamily = BaseModelFamily.POCKET
    checkpoint: str | None = None
    suffix: str = Field("", max_length=1000)
    """Joins the prompt of every arm when it is drawn; adapters are chosen, and pictures scored, without it."""
    negative_prompt: str = Field("", max_length=10_000)
    steps: int = Field(ge=1, le=200)
    guidance: float = Field(ge=0, le=30)
    width: int | None = None
    height: int | None = None
    hires: bool = False
    curve_arms: tuple[str, ...] = ("base", "stylus")
    """Those that are drawn along the guidance grid too."""
    curve_prompts: int = Field(20, ge=0)
    """How many prompts, spread evenly, are drawn along the grid; 0: no curve."""
    curve: tuple[float, ...] = GUIDANCE
    start_prompts: int = Field(6, ge=0)
    """How many prompts, spread evenly, the sets of image translation and inpainting have."""

    @field_validator("arms")
    @classmethod
    def _with_control(cls, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        """The base comes first, asked for or not: it is the control."""
        return tuple(dict.fromkeys((BASE, *arms)))

    @model_validator(mode="after")
    def _curve_of_arms(self) -> Self:
        if unknown := set(self.curve_arms) - {arm.name for arm in self.arms}:
            raise ValueError(f"no curve can be drawn of {', '.join(sorted(unknown))}: name it among the arms")
        return self

    @property
    def id(self) -> str:
        """The same for equal plans: 16 hex digits of its SHA-256."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    def units(self) -> Iterator[Unit]:
        """All that is drawn: the base first, since the sets of translation and inpainting start from its pictures."""
        for arm in self.arms:
            for prompt in range(len(self.prompts)):
                yield Unit(mode=Mode.TEXT, arm=arm, prompt=prompt, guidance=self.guidance)
        for arm in self.arms:
            if arm.name in self.curve_arms:
                for guidance in self.curve:
                    for prompt in spread(len(self.prompts), self.curve_prompts):
                        if guidance != self.guidance:
                            yield Unit(mode=Mode.TEXT, arm=arm, prompt=prompt, guidance=guidance)
        for mode in (Mode.TRANSLATION, Mode.INPAINTING):
            for arm in self.arms:
                if arm.name in self.curve_arms:
                    for prompt in spread(len(self.prompts), self.start_prompts):
                        yield Unit(mode=mode, arm=arm, prompt=prompt, guidance=self.guidance)

    def request(
        self, unit: Unit, composition: Composition, image: str | None = None, mask: str | None = None
    ) -> Request:
        """What to draw for a unit. `composition` is of the unit's policy and the bare prompt; `image` and `mask` are
        what it starts from."""
        prompt = ", ".join(filter(None, (composition.prompt, self.suffix)))
        return Request(
            composition=composition.model_copy(update={"prompt": prompt}),
            count=self.images,
            seed=self.seed + SEEDS_APART * unit.prompt,
            masks=unit.arm.masks,
            method=unit.arm.method,
            negative_prompt=self.negative_prompt,
            steps=self.steps,
            guidance_scale=unit.guidance,
            width=self.width,
            height=self.height,
            hires=self.hires,
            checkpoint=self.checkpoint,
            image=image,
            mask=mask,
            strength=TRANSLATION_STRENGTH if unit.mode is Mode.TRANSLATION else 1.0 if image else None,
        )


def spread(total: int, wanted: int) -> list[int]:
    """`wanted` of the numbers below `total` (all if there are not so many), evenly apart, as prompts of one kind often
    stand together."""
    count = min(total, wanted)
    return [place * total // count for place in range(count)]
