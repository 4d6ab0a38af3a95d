"""Commands that choose adapters and render pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stylus.cli.output import (
    AsJson,
    BaseModelOption,
    add_row,
    id_column,
    interruptible,
    print_json,
    progress_bar,
    terminal,
)
from stylus.errors import InvalidInput
from stylus.records import Composition, ImageRecord, MaskMode, Method, Pick, Policy, Usage

if TYPE_CHECKING:
    from PIL.Image import Image

app = typer.Typer()

AdapterOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", "-a", help="ID or ID=WEIGHT; repeat it. You are the composer then."),
]
PolicyOption = Annotated[Policy, typer.Option(help="Who chooses: the composer, or a part of it alone.")]
NormaliseOption = Annotated[bool, typer.Option("--normalise", help="Even out how loud the adapters are.")]


def _picks(adapters: list[str] | None) -> list[Pick] | None:
    if not adapters:
        return None
    pairs = [text.partition("=") for text in adapters]
    for id, _, _ in pairs:
        if ":" not in id:
            raise InvalidInput(f"{id!r} is no adapter's id, as pocket:star is one: `stylus search` finds them.")
    # pydantic reads the number, so that "=heavy" is refused like any other bad value
    return [Pick.model_validate({"id": id, "weight": weight or None}) for id, _, weight in pairs]


def _refuse(context: typer.Context, beside: str, *options: str) -> None:
    """Raises InvalidInput for one of the options that was typed: it would be ignored."""
    for option in options:
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            raise InvalidInput(f"--{option.replace('_', '-')} changes nothing beside {beside}: leave one of them out.")


@app.command()
def compose(
    context: typer.Context,
    prompt: str,
    base_model: BaseModelOption = None,
    max_adapters: Annotated[int | None, typer.Option(help="At most this many in all, 0 to 20.")] = None,
    temperature: Annotated[float, typer.Option(help="Diversity of the choice, 0 to 2.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="With a temperature: the same seed chooses the same.")] = None,
    policy: PolicyOption = Policy.COMPOSER,
    normalise: NormaliseOption = False,
    adapter: AdapterOption = None,
    as_json: AsJson = False,
) -> None:
    """Choose adapters for a prompt and say why."""
    from stylus.stylus import Stylus

    if adapter:
        _refuse(context, "--adapter", "policy", "temperature", "seed", "max_adapters")
    with Stylus() as stylus:
        composition = stylus.compose(
            prompt,
            base_model=base_model,
            max_adapters=max_adapters,
            temperature=temperature,
            seed=seed,
            policy=policy,
            normalise=normalise,
            picks=_picks(adapter),
        )
    if as_json:
        print_json(composition.model_dump(mode="json"))
    else:
        _show_composition(composition)


def _show_composition(composition: Composition) -> None:
    columns = "task", id_column("adapter"), "weight", "trigger words", "why"
    table = Table(*columns, title=f"composition {composition.id}")
    for task in composition.tasks:
        if not task.choices:
            add_row(table, task.keyword, Text("the base model alone", "dim"))
        for c in task.choices:
            add_row(table, task.keyword, c.adapter_id, f"{c.weight:g}", ", ".join(c.trigger_words), c.reason)
    Console().print(table)
    if composition.usage.from_cache:
        terminal.print("from cache", style="dim")
    elif composition.usage.requests:
        terminal.print(Text(_spent(composition.usage), "dim"))
    for note in composition.notes:
        terminal.print(Text(note, "yellow"))


def _spent(usage: Usage) -> str:
    cost = "" if usage.cost is None else f", ${usage.cost:.4f}"
    tokens = f"{usage.input_tokens} tokens in, {usage.output_tokens} out"
    return f"{usage.requests} requests, {tokens}, {usage.seconds:.1f} s{cost}"


@app.command()
def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What the pictures should show.")] = None,
    composition_id: Annotated[
        str | None,
        typer.Option("--composition", help="Instead of a prompt: its id. -a ID=WEIGHT changes a weight, 0 drops it."),
    ] = None,
    base_model: BaseModelOption = None,
    adapter: AdapterOption = None,
    count: Annotated[int, typer.Option(help="How many images, 1 to 64.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Image i uses seed + i; default: drawn.")] = None,
    masks: Annotated[MaskMode, typer.Option(help="all adapters, the paper's sampled masks, or none.")] = MaskMode.ALL,
    repeat_masks: Annotated[bool, typer.Option("--repeat-masks", help="Sampled masks may repeat at once.")] = False,
    control: Annotated[bool, typer.Option("--control", help="Beside each image, its seed without adapters.")] = False,
    method: Annotated[Method, typer.Option(help="All adapters at once, in turns, or each on its own.")] = Method.MERGE,
    switch_every: Annotated[int, typer.Option(help="Steps of a turn with --method switch.")] = 5,
    budget: Annotated[float | None, typer.Option(help="Most that the weights of an image may sum to.")] = None,
    emphasise: Annotated[bool, typer.Option("--emphasise", help="Repeat keywords without an adapter.")] = False,
    policy: PolicyOption = Policy.COMPOSER,
    normalise: NormaliseOption = False,
    negative_prompt: Annotated[str, typer.Option(help="What the picture should not show.")] = "",
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1 to 200.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance, 0 to 30.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to start from.")] = None,
    mask: Annotated[Path | None, typer.Option(help="With --image: white is drawn anew, black is kept.")] = None,
    strength: Annotated[float | None, typer.Option(help="With --image: how much may change, above 0, to 1.")] = None,
    hires: Annotated[bool, typer.Option("--hires", help="A second pass at twice the width and height.")] = False,
    checkpoint: Annotated[str | None, typer.Option(help="One of several checkpoints of the family, by name.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Where to write a rough picture (PNG) now and then.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Where to write a labelled contact sheet (PNG).")] = None,
    as_json: AsJson = False,
) -> None:
    """Compose and render pictures, here and now. Ctrl-C ends it within a step."""
    from stylus.stylus import Stylus

    if (prompt is None) == (composition_id is None):
        raise InvalidInput("Pass either a prompt or --composition ID.")
    if composition_id is not None:
        _refuse(context, "--composition", "base_model", "policy", "normalise")
    elif adapter:
        _refuse(context, "--adapter", "policy")
    if masks is not MaskMode.SAMPLE:
        _refuse(context, f"--masks {masks}", "repeat_masks")
    if method is not Method.SWITCH:
        _refuse(context, f"--method {method}", "switch_every")
    with Stylus() as stylus, progress_bar() as bar, interruptible(bar) as on_progress:
        if composition_id is not None:
            composition = stylus.history.reweighed(composition_id, _picks(adapter))
        else:
            composition = stylus.compose(
                prompt or "",
                base_model=base_model,
                policy=policy,
                normalise=normalise,
                picks=_picks(adapter),
                on_progress=on_progress,
            )
        request = stylus.request(
            composition,
            count=count,
            seed=seed,
            masks=masks,
            repeat_masks=repeat_masks,
            method=method,
            switch_every=switch_every,
            budget=budget,
            emphasise=emphasise,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance_scale=guidance_scale,
            width=width,
            height=height,
            image=image and stylus.pictures.keep_image(_bytes(image)),
            mask=mask and stylus.pictures.keep_mask(_bytes(mask)),
            strength=strength,
            hires=hires,
            checkpoint=checkpoint,
        )
        images = stylus.generate(request, on_progress=on_progress, preview=preview)
        plain = stylus.generate(stylus.control(request), on_progress=on_progress) if control else []
    if as_json:
        print_json([record.model_dump(mode="json") for record in (*images, *plain)])
    else:
        _show_composition(composition)
        for record in images:
            for note in record.notes:
                terminal.print(Text(f"image {record.index}: {note}", "yellow"))
        for record in (*images, *plain):
            typer.echo(record.location)
    if sheet is not None:
        # after the pictures were named: they are there whatever becomes of it
        _save(_sheet(composition, images, plain), sheet, "the contact sheet")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}.") from error


def _save(image: "Image", path: Path, what: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{what} can't be written to {path} ({error}): name a .png file in a folder that this user may write."
        ) from error


def _sheet(composition: Composition, images: list[ImageRecord], plain: list[ImageRecord]) -> "Image":
    from stylus.contact_sheet import Row, contact_sheet
    from stylus.generation.provenance import load

    rows = []
    for number, record in enumerate(images):
        names = {choice.adapter_id: choice.name for choice in composition.choices}
        lines = [f"{names.get(id, id)} {weight:.2f}" for id, weight in record.adapters.items()] or ["no adapter"]
        groups = [[load(record.location)], *([[load(plain[number].location)]] if plain else [])]
        rows.append(Row(record.prompt, [f"seed {record.seed}", *lines, *record.notes], groups))
    return contact_sheet(["with adapters", "without"] if plain else ["with adapters"], rows)


@app.command()
def replay(
    image: Annotated[str, typer.Argument(help="A PNG that Stylus made: a path or the URL of a store.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the picture made again.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a picture again from the record inside it, and compare. Exit code 2: it is not the same."""
    from stylus.stylus import Stylus

    with Stylus() as stylus, progress_bar() as bar, interruptible(bar) as on_progress:
        found = stylus.pictures.replay(image, on_progress)
    if as_json:
        print_json({"same": found.same, "largest": found.largest, "differences": found.differences})
    elif found.same:
        typer.echo("The same pixels.")
    else:
        typer.echo(f"Not the same: up to {found.largest} of 255.")
    if not as_json:
        for difference in found.differences:
            typer.echo(f"- {difference}")
    if out is not None:
        _save(found.image, out, "the picture")
    if not found.same:
        raise typer.Exit(2)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo"),
    as_json: AsJson = False,
) -> None:
    """Act as an MCP client of a real server: search, compose, generate, and judge the pictures."""
    from stylus.demo import run_demo

    result = run_demo(out, terminal)
    if as_json:
        print_json(result)
