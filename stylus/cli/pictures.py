"""Commands that choose adapters and render pictures."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stylus.cli.output import AsJson, BaseModelOption, add_row, print_json, progress_bar, terminal
from stylus.errors import InvalidInput
from stylus.records import Composition, MaskMode, Pick

app = typer.Typer()

AdapterOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", "-a", help="ID or ID=WEIGHT; repeat it. You are the composer then."),
]


def _picks(adapters: list[str] | None) -> list[Pick] | None:
    if not adapters:
        return None
    pairs = [text.partition("=") for text in adapters]
    # pydantic reads the number, so that "=heavy" is refused like any other bad value
    return [Pick.model_validate({"id": id, "weight": weight or None}) for id, _, weight in pairs]


@app.command()
def compose(
    prompt: str,
    base_model: BaseModelOption = None,
    max_adapters: Annotated[int | None, typer.Option(help="At most this many in all, 0 to 20.")] = None,
    temperature: Annotated[float, typer.Option(help="Diversity of an LLM composer, 0 to 2.")] = 0.0,
    adapter: AdapterOption = None,
    as_json: AsJson = False,
) -> None:
    """Choose adapters for a prompt and say why."""
    from stylus.stylus import Stylus

    with Stylus() as stylus:
        composition = stylus.compose(
            prompt,
            base_model=base_model,
            max_adapters=max_adapters,
            temperature=temperature,
            picks=_picks(adapter),
        )
    if as_json:
        print_json(composition.model_dump(mode="json"))
    else:
        _show_composition(composition)


def _show_composition(composition: Composition) -> None:
    table = Table("task", "adapter", "weight", "trigger words", "why", title=f"composition {composition.id}")
    for task in composition.tasks:
        if not task.choices:
            add_row(table, task.keyword, Text("the base model alone", "dim"))
        for c in task.choices:
            add_row(table, task.keyword, c.adapter_id, f"{c.weight:g}", ", ".join(c.trigger_words), c.reason)
    Console().print(table)
    for note in composition.notes:
        terminal.print(Text(note, "yellow"))


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the pictures should show.")] = None,
    composition_id: Annotated[str | None, typer.Option("--composition", help="Instead of a prompt: its id.")] = None,
    base_model: BaseModelOption = None,
    adapter: AdapterOption = None,
    count: Annotated[int, typer.Option(help="How many images, 1 to 64.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Image i uses seed + i; default: drawn.")] = None,
    masks: Annotated[MaskMode, typer.Option(help="all adapters, the paper's sampled masks, or none.")] = MaskMode.ALL,
    negative_prompt: Annotated[str, typer.Option(help="What the picture should not show.")] = "",
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1 to 200.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance, 0 to 30.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compose and render pictures, here and now."""
    from stylus.stylus import Stylus

    if (prompt is None) == (composition_id is None):
        raise InvalidInput("Pass either a prompt or --composition ID.")
    with Stylus() as stylus, progress_bar() as on_progress:
        if composition_id is not None:
            composition = stylus.history.composition(composition_id)
        else:
            composition = stylus.compose(prompt or "", base_model=base_model, picks=_picks(adapter))
        images = stylus.generate(
            composition,
            on_progress=on_progress,
            count=count,
            seed=seed,
            masks=masks,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance_scale=guidance_scale,
            width=width,
            height=height,
        )
    if as_json:
        print_json([image.model_dump(mode="json") for image in images])
        return
    _show_composition(composition)
    for image in images:
        typer.echo(image.location)


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
