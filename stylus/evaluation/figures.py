"""The paper's figures from a report, each as PNG and SVG (matplotlib, the extra `evaluation`)."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stylus.errors import ModelUnavailable
from stylus.evaluation.ledger import write_whole
from stylus.evaluation.overhead import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b1b1e"
"""Of lines and letters; pages replace it, to be read in the dark too."""
PALETTE = ("#6d6d75", "#d1495b", "#2e86ab", "#edae49", "#66a182", "#9b5de5", "#c46d3b", "#3d5a80")
Report = Mapping[str, Any]


def save_figures(report: Report, folder: Path) -> dict[str, str]:
    """Writes what the report has figures for, as `folder`/NAME.png and .svg; returns the SVG texts by name.

    Raises ModelUnavailable without matplotlib, StorageError if the folder can't be written."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModelUnavailable("Figures need matplotlib: pip install 'stylus-adapters[evaluation]'.") from error

    style: dict[Any, Any] = {
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
        "svg.fonttype": "none",
        # the same report gives the same files
        "svg.hashsalt": "stylus",
    }
    found = {}
    with mpl.rc_context(style):
        for name, (paint, needs) in FIGURES.items():
            if not report.get(needs):
                continue
            figure = Figure(figsize=(6.4, 3.6), layout="constrained")
            paint(figure, report)
            png, svg = io.BytesIO(), io.BytesIO()
            figure.savefig(png, format="png", dpi=110, facecolor="white")
            figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
            write_whole(folder / f"{name}.png", png.getvalue())
            write_whole(folder / f"{name}.svg", svg.getvalue())
            found[name] = svg.getvalue().decode()
    return found


def colour(place: int) -> str:
    return PALETTE[place % len(PALETTE)]


def _ablation(figure: "Figure", report: Report) -> None:
    """Each arm's CLIP score, concept rate and diversity, with 95% intervals."""
    arms = list(report["arms"])
    names = [name for name in ("clip", "concept_rate", "dfid") if name in report["arms"]["base"]]
    titles = {"clip": "CLIP score", "concept_rate": "concepts shown", "dfid": "diversity (dFID)"}
    for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        for place, arm in enumerate(arms):
            value, low, high = report["arms"][arm][name]
            axes.plot([low, high], [place, place], color=colour(place), linewidth=2)
            axes.plot(value, place, "o", color=colour(place))
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_xlabel(titles[name])
        axes.grid(axis="x", alpha=0.3)


def _curve(figure: "Figure", report: Report) -> None:
    """FID against CLIP along guidance: the Pareto curve, up and left is better."""
    axes = figure.subplots()
    labels = {"fid": "FID (less is better)", "dfid": "diversity (dFID)", "guidance": "guidance scale"}
    # a single picture has neither distance
    distance = next(name for name in labels if all(name in p for points in report["curve"].values() for p in points))
    for place, (arm, points) in enumerate(report["curve"].items()):
        across = [point["dfid"][0] if distance == "dfid" else point[distance] for point in points]
        up = [point["clip"][0] for point in points]
        axes.plot(across, up, "o-", color=colour(place), label=arm)
        for x, y, point in zip(across, up, points, strict=True):
            axes.annotate(f"{point['guidance']:g}", (x, y), (3, 3), textcoords="offset points", fontsize=7)
    axes.set_xlabel(labels[distance])
    axes.set_ylabel("CLIP score")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _diversity(figure: "Figure", report: Report) -> None:
    """dFID against the prompt's words, the mean of each length."""
    axes = figure.subplots()
    for place, (arm, found) in enumerate(report["diversity_by_length"].items()):
        by_length: dict[int, list[float]] = {}
        for length, value in found["points"]:
            by_length.setdefault(length, []).append(value)
        lengths = sorted(by_length)
        means = [sum(by_length[n]) / len(by_length[n]) for n in lengths]
        axes.plot(lengths, means, ".-", color=colour(place), label=arm, linewidth=1)
    axes.set_xlabel("words of the prompt")
    axes.set_ylabel("diversity (dFID)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7, ncols=2)


def _outcomes(figure: "Figure", report: Report) -> None:
    """On which share of prompts each arm's CLIP score is better than the base's, the same or worse."""
    axes = figure.subplots()
    _stacked(
        axes,
        {
            arm: {how: found["clip"][how][0] for how in ("win", "tie", "lose")}
            for arm, found in report["against_base"].items()
        },
        {"win": "#66a182", "tie": "#b8b8be", "lose": "#d1495b"},
    )
    axes.set_xlabel("share of prompts, by CLIP score against the base on the same seeds")


def _overhead(figure: "Figure", report: Report) -> None:
    """Seconds of each stage by batch size."""
    axes = figure.subplots()
    bars = {f"batch {batch}": {stage: row[stage] for stage in STAGES} for batch, row in report["overhead"].items()}
    _stacked(axes, bars, dict(zip(STAGES, PALETTE[1:], strict=False)))
    axes.set_xlabel("seconds, median over prompts")


def _picks(figure: "Figure", report: Report) -> None:
    """Adapters a prompt, by arm."""
    axes = figure.subplots()
    arms = {arm: found["histogram"] for arm, found in report["picks"].items() if "-" not in arm and arm != "base"}
    for place, (arm, histogram) in enumerate(arms.items()):
        width = 0.8 / len(arms)
        axes.bar(
            [int(n) + (place - (len(arms) - 1) / 2) * width for n in histogram],
            list(histogram.values()),
            width,
            label=arm,
            color=colour(place + 1),
        )
    axes.set_xlabel("adapters chosen")
    axes.set_ylabel("prompts")
    axes.legend(frameon=False)


def _groups(figure: "Figure", report: Report, by: str) -> None:
    axes = figure.subplots()
    groups = report[by]
    for place, arm in enumerate(report["arms"]):
        rows = [(n, group["arms"][arm]["clip"]) for n, group in enumerate(groups.values())]
        at = [n + (place - len(report["arms"]) / 2) * 0.08 for n, _ in rows]
        for x, (_, (_, low, high)) in zip(at, rows, strict=True):
            axes.plot([x, x], [low, high], color=colour(place), linewidth=1)
        axes.plot(at, [value[0] for _, value in rows], "o", markersize=4, color=colour(place), label=arm)
    axes.set_xticks(range(len(groups)), [f"{name}\n{group['prompts']} prompts" for name, group in groups.items()])
    axes.set_ylabel("CLIP score")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=7, ncols=2)


def _by_category(figure: "Figure", report: Report) -> None:
    """CLIP score by the prompt's category."""
    _groups(figure, report, "by_category")


def _by_length(figure: "Figure", report: Report) -> None:
    """CLIP score by the prompt's length."""
    _groups(figure, report, "by_length")


def _stacked(axes: "Axes", bars: Mapping[str, Mapping[str, float]], colours: Mapping[str, str]) -> None:
    left = dict.fromkeys(bars, 0.0)
    for part, fill in colours.items():
        values = [row[part] for row in bars.values()]
        axes.barh(list(bars), values, left=list(left.values()), color=fill, label=part)
        left = {bar: left[bar] + value for bar, value in zip(bars, values, strict=True)}
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=len(colours), loc="lower center", bbox_to_anchor=(0.5, 1))


FIGURES: dict[str, tuple[Callable[["Figure", Report], None], str]] = {
    "ablation": (_ablation, "arms"),
    "curve": (_curve, "curve"),
    "outcomes": (_outcomes, "against_base"),
    "diversity": (_diversity, "diversity_by_length"),
    "by-length": (_by_length, "by_length"),
    "by-category": (_by_category, "by_category"),
    "picks": (_picks, "picks"),
    "overhead": (_overhead, "overhead"),
}
"""Name -> how it is painted (the docstring is its caption), and the part of the report that it needs."""
