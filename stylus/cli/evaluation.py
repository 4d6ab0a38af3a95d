"""Commands that measure whether Stylus helps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stylus.cli.output import AsJson, BaseModelOption, add_row, interruptible, print_json, progress_bar, terminal
from stylus.errors import InvalidInput

if TYPE_CHECKING:
    from stylus.evaluation.protocol import Arm
    from stylus.settings import Settings

evaluate_app = typer.Typer(
    no_args_is_help=True,
    help="Measure whether Stylus helps: fair arms, intervals, figures, a page. Run a command again to go on.",
)
app = typer.Typer()
app.add_typer(evaluate_app, name="evaluate")

OutOption = Annotated[Path, typer.Option(help="Folder for pictures, figures, report.html and report.json.")]
ArmsOption = Annotated[
    str | None,
    typer.Option(
        help="Separated by commas: base, stylus, reranker, retriever, random, each with -switch or -composite, "
        "with -sample. Default: the paper's, with both methods and sampled masks."
    ),
]
ImagesOption = Annotated[int, typer.Option(help="Images of each prompt in each arm, 1 to 64; all count.")]
SeedOption = Annotated[int, typer.Option(help="Of the first image; all arms have the same.")]
CurveOption = Annotated[int, typer.Option(help="Prompts of the CLIP/FID curve over guidance; 0: no curve.")]
TimedOption = Annotated[bool, typer.Option("--overhead/--no-overhead", help="Time the stages by batch size.")]


@evaluate_app.command("pocket")
def evaluate_pocket(
    out: OutOption,
    prompts: Annotated[int | None, typer.Option(help="How many of the test prompts; default: all.")] = None,
    images: ImagesOption = 4,
    arms: ArmsOption = None,
    seed: SeedOption = 0,
    curve_prompts: CurveOption = 20,
    timed: TimedOption = True,
    as_json: AsJson = False,
) -> None:
    """Evaluate on the pocket world that comes with Stylus: no download, no GPU, an independent judge of concepts."""
    from stylus.evaluation.evaluating import evaluate
    from stylus.evaluation.features import open_text_features
    from stylus.evaluation.prompt_sets import pocket_prompts
    from stylus.evaluation.protocol import Plan, spread
    from stylus.evaluation.reference import POCKET
    from stylus.generation.families import DEFAULTS
    from stylus.ingest import ingest_pocket
    from stylus.pocket import RERANKER
    from stylus.pocket.judge import Judge
    from stylus.records import BaseModelFamily
    from stylus.reranker import LOCAL
    from stylus.settings import Settings
    from stylus.stylus import Stylus

    read = Settings.read()
    settings = read if read.reranker else read.model_copy(update={"reranker": f"{LOCAL}{RERANKER}"})
    every = pocket_prompts()
    chosen, missing = _arms(arms, settings)
    plan = Plan(
        prompts=tuple(every[place] for place in spread(len(every), len(every) if prompts is None else prompts)),
        arms=tuple(chosen),
        curve_arms=_curve_arms(chosen),
        images=images,
        seed=seed,
        steps=DEFAULTS[BaseModelFamily.POCKET].steps,
        guidance=DEFAULTS[BaseModelFamily.POCKET].guidance_scale,
        curve_prompts=curve_prompts,
    )
    with Stylus(settings) as stylus, progress_bar() as bar, interruptible(bar) as on_progress:
        ingest_pocket(stylus.catalog, stylus.embedder, on_progress)
        clip = open_text_features()
        report = evaluate(
            stylus,
            plan,
            out,
            clip,
            clip,
            reference=POCKET,
            judge=Judge.load().concepts,
            timed=timed,
            not_run=missing,
            on_progress=on_progress,
        )
    _show(report, out, as_json)


@evaluate_app.command("run")
def evaluate_run(
    out: OutOption,
    prompts: Annotated[Path, typer.Option(help="COCO captions .json, PartiPrompts .tsv, .jsonl, or one a line.")],
    clip: Annotated[str, typer.Option(help="CLIP or SigLIP of transformers for the scores: a folder or a hub id.")],
    features: Annotated[
        str | None, typer.Option(help="Vision model for FID and dFID; default: that of --clip.")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Real pictures for FID: a folder, or an .npz.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts of the file.")] = None,
    images: ImagesOption = 4,
    arms: ArmsOption = None,
    seed: SeedOption = 0,
    base_model: BaseModelOption = None,
    checkpoint: Annotated[str | None, typer.Option(help="One of several checkpoints of the family, by name.")] = None,
    preset: Annotated[str | None, typer.Option(help="The paper's settings: realistic-vision or counterfeit.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Joins every prompt of every arm when it is drawn.")] = None,
    negative_prompt: Annotated[str, typer.Option(help="What the pictures should not show.")] = "",
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1 to 200.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance, 0 to 30.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    hires: Annotated[bool | None, typer.Option("--hires/--no-hires", help="A second pass at twice the size.")] = None,
    curve_prompts: CurveOption = 20,
    timed: TimedOption = True,
    as_json: AsJson = False,
) -> None:
    """Evaluate your own catalog, checkpoint and prompts."""
    from stylus.evaluation.evaluating import evaluate
    from stylus.evaluation.features import open_features, open_text_features
    from stylus.evaluation.prompt_sets import load_prompts
    from stylus.evaluation.protocol import PRESETS, Plan
    from stylus.generation.families import DEFAULTS
    from stylus.model_loading import pick_device
    from stylus.settings import Settings
    from stylus.stylus import Stylus

    settings = Settings.read()
    family = base_model or settings.default_family
    if preset is not None and preset not in PRESETS:
        raise InvalidInput(f"There is no preset {preset!r}: name {' or '.join(PRESETS)}.")
    defaults: dict[str, Any] = {
        "suffix": "",
        "steps": DEFAULTS[family].steps,
        "guidance": DEFAULTS[family].guidance_scale,
        "hires": False,
        **(PRESETS[preset] if preset else {}),
    }
    given = {"suffix": suffix, "steps": steps, "guidance": guidance_scale, "hires": hires}
    chosen, missing = _arms(arms, settings)
    plan = Plan(
        prompts=tuple(load_prompts(prompts, limit)),
        arms=tuple(chosen),
        curve_arms=_curve_arms(chosen),
        images=images,
        seed=seed,
        base_model=family,
        checkpoint=checkpoint,
        negative_prompt=negative_prompt,
        width=width,
        height=height,
        curve_prompts=curve_prompts,
        **{**defaults, **{name: value for name, value in given.items() if value is not None}},
    )
    with Stylus(settings) as stylus, progress_bar() as bar, interruptible(bar) as on_progress:
        device = str(pick_device(settings.device))
        scorer = open_text_features(clip, device)
        report = evaluate(
            stylus,
            plan,
            out,
            scorer,
            scorer if features is None else open_features(features, device),
            reference=reference,
            timed=timed,
            not_run=missing,
            on_progress=on_progress,
        )
    _show(report, out, as_json)


def _arms(names: str | None, settings: "Settings") -> tuple[list["Arm"], dict[str, str]]:
    """The arms that were named, or all that can be run, and why the others can't."""
    from stylus.evaluation.protocol import ARMS, Arm
    from stylus.records import Policy

    if names is not None:
        return [Arm.parse(name.strip()) for name in names.split(",")], {}
    chosen = [arm for arm in ARMS if settings.reranker or arm.policy is not Policy.RERANKER]
    why = "STYLUS_RERANKER is not set."
    return chosen, {arm.name: why for arm in ARMS if arm not in chosen}


def _curve_arms(arms: Sequence["Arm"]) -> tuple[str, ...]:
    return ("base", *(["stylus"] if any(arm.name == "stylus" for arm in arms) else []))


def _show(report: dict[str, Any], out: Path, as_json: bool) -> None:
    page = str(out / "report.html")
    if as_json:
        print_json({"page": page, **{name: report[name] for name in ("arms", "expectations", "not_run", "notes")}})
        return
    names = [name for name in ("clip", "concept_rate", "dfid", "fid", "kid") if name in report["arms"]["base"]]
    table = Table("arm", *names)
    for arm, row in report["arms"].items():
        add_row(table, arm, *(_cell(row[name]) for name in names))
    Console().print(table)
    for told in report["expectations"]:
        terminal.print(f"{told['verdict']}: {told['claim']} {told['why']}", markup=False, highlight=False)
    for arm, why in report["not_run"].items():
        terminal.print(f"not run: {arm}: {why}", markup=False, highlight=False)
    typer.echo(page)


def _cell(value: float | list[float]) -> str:
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]" if isinstance(value, list) else f"{value:.3f}"
