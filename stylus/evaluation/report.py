"""The report of an evaluation: report.json, figures, and one HTML page that needs nothing beside it."""

import base64
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from stylus.evaluation.figures import FIGURES, INK, save_figures
from stylus.evaluation.ledger import Drawn, Ledger, write_whole
from stylus.evaluation.protocol import Mode
from stylus.evaluation.results import MEASURES
from stylus.generation.provenance import load

SHOWN_PROMPTS = 100
"""Prompts whose pictures the page holds: all pictures lie in the folder anyway."""
SIDE = 128
"""Most pixels of a picture's side on the page."""
GAP = 2
SETS = {"translation": "Image translation", "inpainting": "Inpainting: the middle is drawn anew"}


def save_report(ledger: Ledger, report: Mapping[str, Any]) -> Path:
    """Writes report.json, figures/ and report.html into the evaluation's folder; returns the page's path."""
    write_whole(ledger.folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False).encode())
    figures = save_figures(report, ledger.folder / "figures")
    page = ledger.folder / "report.html"
    write_whole(page, "\n".join(_page(ledger, report, figures)).encode())
    return page


def _page(ledger: Ledger, report: Mapping[str, Any], figures: Mapping[str, str]) -> Iterator[str]:
    yield "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    yield f"<title>Stylus: evaluation</title><style>{STYLE}</style><main>"
    plan = ledger.plan
    yield "<h1>Does it help?</h1>"
    facts = f"{len(plan.prompts)} prompts, {plan.images} images each, guidance {plan.guidance:g}, {plan.steps} steps"
    yield f"<p>{facts}; base model {_e(plan.checkpoint or plan.base_model)}. Every arm has the same prompts, "
    yield "suffix, seeds, guidance and steps; means are over all images; intervals (95%) resample prompts.</p>"
    for claim in report["expectations"]:
        said = f"<b>{claim['verdict']}</b> {_e(claim['claim'])} <span>{_e(claim['why'])}</span>"
        yield f"<p class='claim {claim['verdict']}'>{said}</p>"
    yield "<h2>Arms</h2>" + _table(report["arms"])
    meanings = "".join(f"<dt>{_title(name)}<dd>{_e(what)}" for name, what in MEASURES.items())
    yield f"<details><summary>What they mean</summary><dl>{meanings}</dl></details>"
    for name, why in report["not_run"].items():
        yield f"<p class=note>Not run: {_e(name)}. {_e(why)}</p>"
    yield from (f"<p class=note>{_e(note)}</p>" for note in report["notes"])
    for name, svg in figures.items():
        drawing = svg[svg.index("<svg") :].replace(INK, "currentColor")
        yield f"<figure>{drawing}<figcaption>{_e(FIGURES[name][0].__doc__ or name)}</figcaption></figure>"
    pictures = ledger.pictures()
    for mode, arms in report["sets"].items():
        yield f"<h2>{SETS[mode]}</h2>" + _table(arms)
        yield from _grid(plan.prompts, [one for one in pictures if one.mode == mode])
    if report["curve"]:
        yield "<h2>Guidance</h2>"
        yield from _along_guidance(ledger, [one for one in pictures if one.mode is Mode.TEXT])
    yield "<h2>Pictures</h2>"
    main = [one for one in pictures if one.mode is Mode.TEXT and one.guidance == plan.guidance]
    yield from _grid(plan.prompts, main)
    yield "</main></html>"


def _table(arms: Mapping[str, Mapping[str, Any]]) -> str:
    columns = [name for name in (*MEASURES, "fid", "kid") if any(name in row for row in arms.values())]
    head = "".join(f"<th>{_title(name)}" for name in columns)
    rows = "".join(
        f"<tr><th>{_e(arm)}" + "".join(f"<td>{_cell(row.get(c))}" for c in columns) for arm, row in arms.items()
    )
    return f"<div class=wide><table><tr><th>arm{head}{rows}</table></div>"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        digits = 2 if value[0] >= 10 else 3
        return f"{value[0]:.{digits}f} <small>{value[1]:.{digits}f}–{value[2]:.{digits}f}</small>"
    return f"{value:.3f}"


def _title(name: str) -> str:
    return {"clip": "CLIP", "dfid": "dFID", "fid": "FID", "kid": "KID"}.get(name, name.replace("_", " "))


def _grid(prompts: Sequence[Any], pictures: Sequence[Drawn]) -> Iterator[str]:
    """For each prompt a row of pictures for each arm."""
    by_prompt: dict[int, dict[str, list[Drawn]]] = {}
    for one in pictures:
        by_prompt.setdefault(one.prompt, {}).setdefault(one.arm, []).append(one)
    for number in sorted(by_prompt)[:SHOWN_PROMPTS]:
        yield f"<h3>{_e(prompts[number].text)}</h3><div class=grid>"
        for arm, row in by_prompt[number].items():
            used = sorted({adapter["id"] for one in row for adapter in one.record["adapters"]})
            caption = f"{arm}: {', '.join(used)}" if used else arm
            yield f"<figure>{_strip(row)}<figcaption>{_e(caption)}</figcaption></figure>"
        yield "</div>"
    if len(by_prompt) > SHOWN_PROMPTS:
        yield f"<p class=note>The first {SHOWN_PROMPTS} of {len(by_prompt)} prompts; all lie in the folder.</p>"


def _along_guidance(ledger: Ledger, pictures: Sequence[Drawn]) -> Iterator[str]:
    """The first prompt of the curve, one picture at each guidance."""
    first = {one.prompt for one in pictures if one.guidance != ledger.plan.guidance}
    for arm in ledger.plan.curve_arms:
        row = [one for one in pictures if first and one.arm == arm and one.prompt == min(first) and one.index == 0]
        if row:
            scales = ", ".join(f"{one.guidance:g}" for one in row)
            caption = f"{arm}, “{ledger.plan.prompts[min(first)].text}” at guidance {scales}"
            yield f"<figure>{_strip(row)}<figcaption>{_e(caption)}</figcaption></figure>"


def _strip(row: Sequence[Drawn]) -> str:
    """The pictures side by side, as one inlined picture."""
    opened = [load(str(one.path)).convert("RGB") for one in row]
    shrunk = [image.resize(_fitted(image.size), Image.Resampling.LANCZOS) for image in opened]
    width = sum(image.width + GAP for image in shrunk) - GAP
    sheet = Image.new("RGB", (width, max(image.height for image in shrunk)), "white")
    left = 0
    for image in shrunk:
        sheet.paste(image, (left, 0))
        left += image.width + GAP
    buffer = io.BytesIO()
    sheet.save(buffer, format="WEBP", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<img loading=lazy alt='{row[0].arm}' width={width} height={sheet.height} src='data:image/webp;base64,{data}'>"
    )


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    shrunk = min(1.0, SIDE / max(size))
    return max(1, round(size[0] * shrunk)), max(1, round(size[1] * shrunk))


def _e(text: str) -> str:
    return html.escape(str(text))


STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf7;--ink:#1b1b1f;--faint:#6d6d75;--line:#dedbd3}
@media(prefers-color-scheme:dark){:root{--paper:#17171a;--ink:#eceae4;--faint:#a3a3ab;--line:#37373d}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:960px;margin:auto;padding:1rem}
h1{font-size:1.6rem}h2{margin-top:2.5rem}h3{font-size:1rem;margin:1.5rem 0 .3rem}
small,figcaption,dd,.note,.claim span{color:var(--faint)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
tr>th:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
small{display:block}details,.note{font-size:.85rem}dt{font-weight:600}dd{margin:0 0 .3rem}
figure{margin:1rem 0;overflow-x:auto}figure svg{width:100%;min-width:30rem;height:auto}
figcaption{font-size:.8rem;overflow-wrap:anywhere}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:.6rem}
.grid figure{margin:0}img{max-width:100%;height:auto}.grid img{width:100%}
.claim{border-left:4px solid var(--faint);padding-left:.7rem}
.confirmed{border-color:#3f9a63}.refuted{border-color:#d1495b}
"""
