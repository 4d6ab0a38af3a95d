"""A whole evaluation on the pocket world, small: its figures against others' arithmetic, its page, and real kills."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from stylus.cli import app
from stylus.errors import Busy, Cancelled, InvalidInput
from stylus.evaluation.drawing import draw
from stylus.evaluation.evaluating import evaluate, expectations
from stylus.evaluation.features import ClipModel, open_text_features
from stylus.evaluation.ledger import Ledger
from stylus.evaluation.prompt_sets import pocket_prompts
from stylus.evaluation.protocol import Arm, Mode, Plan
from stylus.evaluation.reference import POCKET, Reference
from stylus.generation.provenance import read
from stylus.ingest import ingest_pocket
from stylus.pocket import CLIP
from stylus.pocket.judge import Judge
from stylus.records import Progress
from stylus.settings import Settings
from stylus.stylus import Stylus

CHOSEN = [prompt for prompt in pocket_prompts() if len(prompt.concepts) > 1][:2]
PLAN = Plan(
    prompts=tuple(CHOSEN),
    arms=tuple(map(Arm.parse, ("stylus", "random-sample", "stylus-composite"))),
    images=2,
    steps=3,
    guidance=4.0,
    curve=(2.0, 4.0),
    curve_prompts=1,
    start_prompts=1,
    suffix="on paper",
)
PICTURES = 2 * (4 * 2 + 2 + 2 * 2)
"""Images x (arms x prompts + one more guidance of two arms + two sets of two arms)."""


MERGED = ("stylus", "stylus-composite")


def quiet(_: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    return open_text_features()


@pytest.fixture
def stylus(settings: Settings) -> Iterator[Stylus]:
    with Stylus(settings) as stylus:
        ingest_pocket(stylus.catalog, stylus.embedder)
        yield stylus


def run(stylus: Stylus, folder: Path, clip: ClipModel, plan: Plan = PLAN, **options: Any) -> dict[str, Any]:
    judge = Judge.load().concepts
    return evaluate(
        stylus, plan, folder, clip, clip, reference=POCKET, judge=judge, timed=False, on_progress=quiet, **options
    )


def test_an_evaluation_from_plan_to_page(stylus: Stylus, tmp_path: Path, clip: ClipModel) -> None:
    folder = tmp_path / "out"
    report = run(stylus, folder, clip, not_run={"reranker": "there is none"})
    ledger = Ledger.of(stylus.database, folder)
    pictures = ledger.pictures()
    assert len(pictures) == len(list(folder.rglob("images/**/*.png"))) == PICTURES

    # every picture holds what made it, and arms differ in nothing that they share
    for one in pictures:
        assert read(str(one.path)) == one.record
        assert one.record["seed"] == one.seed
        assert one.record["prompt"].startswith(f"{CHOSEN[one.prompt].text}, on paper")
        assert (one.arm == "base") == (not one.record["adapters"]) or one.arm == "random-sample"
    assert len({(one.prompt, one.index, one.seed) for one in pictures}) == 4

    # arms of one policy share their composition
    ids = {arm: [one.record["request"]["composition"]["id"] for one in pictures if one.arm == arm] for arm in MERGED}
    assert set(ids["stylus"]) == set(ids["stylus-composite"])
    assert len(set(ids["stylus"])) == len(CHOSEN)

    # CLIP score: the mean over all images, by transformers alone, of the prompt without its suffix
    model, tokenizer = CLIPModel.from_pretrained(CLIP), CLIPTokenizer.from_pretrained(CLIP)
    for arm, row in report["arms"].items():
        mine = [one for one in pictures if (one.arm, one.guidance, one.mode) == (arm, 4.0, Mode.TEXT)]
        pixels = np.stack([np.asarray(Image.open(one.path), np.float32).transpose(2, 0, 1) / 127.5 - 1 for one in mine])
        ids = tokenizer([CHOSEN[one.prompt].text for one in mine], padding=True, return_tensors="pt")
        with torch.inference_mode():
            scores = model(pixel_values=torch.from_numpy(pixels), **ids).logits_per_image.diagonal()
        wanted = 100 * (scores / model.logit_scale.exp().item()).clamp(min=0).mean().item()
        assert row["clip"][0] == pytest.approx(wanted, abs=2e-3)
        seen = Judge.load().concepts([Image.open(one.path) for one in mine])
        hits = sum(len(shown & set(CHOSEN[one.prompt].concepts)) for one, shown in zip(mine, seen, strict=True))
        asked = sum(len(CHOSEN[one.prompt].concepts) for one in mine)
        assert row["concept_rate"][0] == pytest.approx(hits / asked, abs=1e-4)
        assert row["images"] == len(mine) == 4
        assert row["clip"][1] <= row["clip"][0] <= row["clip"][2]
        assert row["fid"] > 0

    assert report == json.loads((folder / "report.json").read_text())
    assert [point["guidance"] for point in report["curve"]["stylus"]] == [2, 4]
    assert set(report["sets"]) == {"translation", "inpainting"}
    assert report["sets"]["inpainting"]["stylus"]["images"] == 2
    _check_inpainting(ledger)
    _check_page(folder)

    # run again: nothing is drawn, and the result is the same to the byte
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("images/**/*.png")}
    again = run(stylus, folder, clip, not_run={"reranker": "there is none"})
    assert again == report
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("images/**/*.png")} == before

    # another plan does not land among these pictures
    with pytest.raises(InvalidInput, match="other options"):
        Ledger.begin(stylus.database, PLAN.model_copy(update={"seed": 1}), folder)
    # rows that were lost are taken in from the pictures
    with stylus.database.connection() as connection:
        connection.execute("delete from evaluations where id = %s", [ledger.id])
    assert draw(stylus, Ledger.begin(stylus.database, PLAN, folder), quiet) == 0


def _check_inpainting(ledger: Ledger) -> None:
    """Outside of the middle an inpainted picture has the pixels that it started from."""
    pictures = ledger.pictures()
    base = (Mode.TEXT, "base", PLAN.guidance, 0)
    start = next(one for one in pictures if (one.mode, one.arm, one.guidance, one.index) == base)
    inpainted = next(one for one in pictures if one.mode is Mode.INPAINTING and one.prompt == start.prompt)
    first, second = (np.asarray(Image.open(one.path)) for one in (start, inpainted))
    outside = np.ones(first.shape[:2], bool)
    outside[16:48, 16:48] = False
    assert (first[outside] == second[outside]).all()
    assert (first[~outside] != second[~outside]).any()


def _check_page(folder: Path) -> None:
    for name in ("ablation", "curve", "outcomes", "by-category", "by-length", "picks"):
        with Image.open(folder / "figures" / f"{name}.png") as figure:
            assert figure.width > 600
        assert "<svg" in (folder / "figures" / f"{name}.svg").read_text()
    page = (folder / "report.html").read_text()
    assert all(where.startswith(("data:", "#")) for where in re.findall(r"(?:src|href)=['\"]?([^'\" >]*)", page))
    pictures = re.findall(r"src='data:image/webp;base64,([^']+)'", page)
    assert len(pictures) >= 2 * 4
    assert all(Image.open(io.BytesIO(base64.b64decode(data))).width > 64 for data in pictures)
    assert "there is none" in page


@pytest.mark.parametrize("curve_prompts", [0, 1])
def test_a_single_picture_has_no_distances(stylus: Stylus, tmp_path: Path, clip: ClipModel, curve_prompts: int) -> None:
    changes = {"prompts": PLAN.prompts[:1], "arms": PLAN.arms[:2], "images": 1, "curve_prompts": curve_prompts}
    report = run(stylus, tmp_path, clip, PLAN.model_copy(update=changes))
    rows = [*report["arms"].values(), *report["sets"]["inpainting"].values(), *report["curve"].get("stylus", [])]
    assert all("clip" in row and not {"fid", "kid", "dfid"} & row.keys() for row in rows)
    assert "FID and KID need two" in report["notes"][0]
    assert (tmp_path / "figures" / "curve.svg").is_file() == bool(curve_prompts)
    assert (tmp_path / "report.html").is_file()


def test_cancelling_keeps_what_is_whole(stylus: Stylus, tmp_path: Path) -> None:
    few = PLAN.model_copy(update={"start_prompts": 0, "curve_prompts": 0, "arms": PLAN.arms[:2]})
    ledger = Ledger.begin(stylus.database, few, tmp_path)

    def impatient(progress: Progress) -> None:
        if progress.done >= 4:
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        draw(stylus, ledger, impatient)
    assert len(ledger.pictures()) == 4
    with ledger.alone(), pytest.raises(Busy, match="another process"):
        draw(stylus, Ledger.of(stylus.database, tmp_path), quiet)
    assert draw(stylus, ledger, quiet) == 4


KILLED = """
import os, sys
from pathlib import Path
from stylus.evaluation.drawing import draw
from stylus.evaluation.ledger import Ledger
from stylus.evaluation.protocol import Plan
from stylus.generation.generator import Generator
from stylus.stylus import Stylus

plan, status = Plan.model_validate_json(Path(sys.argv[2]).read_text()), 1
while status:
    child = os.fork()
    if not child:
        with Stylus() as stylus:
            draw(stylus, Ledger.begin(stylus.database, plan, Path(sys.argv[1])), lambda _: None)
        os._exit(0)
    print(child, flush=True)
    status = os.waitpid(child, 0)[1]
"""
"""Processes that draw, one after the other until one comes to its end; forked, since importing takes seconds."""


@pytest.mark.timeout(600)
def test_killed_anywhere_it_draws_nothing_twice_and_gives_the_same(stylus: Stylus, tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"start_prompts": 0})
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    folder, url = tmp_path / "killed", stylus.settings.database_url
    assert url is not None
    environment = {
        **os.environ,
        "STYLUS_DATABASE_URL": url.get_secret_value(),
        "STYLUS_DATA": str(stylus.settings.data),
    }
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "plan.json")]
    made: dict[Path, tuple[int, int]] = {}
    after = iter((1, 5, 2))
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        for child in server.stdout:
            wanted = len(made) + next(after, PICTURES)
            while len(made) < min(wanted, PICTURES - 8) and server.poll() is None:
                now = {
                    path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("images/*/*/[0-9]*/*")
                }
                assert {path: now.get(path) for path in made} == made, "a picture was made twice"
                made = now
                time.sleep(0.02)
            if wanted < PICTURES - 8:
                os.kill(int(child), signal.SIGKILL)
    assert server.returncode == 0
    assert next(after, None) is None
    undisturbed = Ledger.begin(stylus.database, plan, tmp_path / "undisturbed")
    draw(stylus, undisturbed, quiet)
    pictures = undisturbed.pictures()
    assert len(Ledger.of(stylus.database, folder).pictures()) == len(made) == len(pictures) == PICTURES - 8
    for one in pictures:
        other = folder / one.path.relative_to(undisturbed.folder)
        # in another process, sums of floats may be taken in another order: at most one level of 255
        first, second = (np.asarray(Image.open(path), dtype=np.int16) for path in (other, one.path))
        assert np.abs(first - second).max() <= 1


def test_references_are_folders_or_files_of_the_same_features(tmp_path: Path, clip: ClipModel) -> None:
    reference = Reference.open(POCKET, clip, quiet)
    assert reference.vectors is not None
    np.savez(tmp_path / "moments.npz", mu=reference.moments.mean, sigma=reference.moments.covariance)
    bare = Reference.open(tmp_path / "moments.npz", clip, quiet)
    assert bare.vectors is None
    assert np.array_equal(bare.moments.covariance, reference.moments.covariance)
    for n, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (70, 64), colour).save(tmp_path / f"{n}.png")
    seen = Reference.open(tmp_path, clip, quiet)
    assert seen.vectors is not None
    assert len(seen.vectors) == 3
    np.savez(tmp_path / "foreign.npz", vectors=seen.vectors, features=np.array("another model"))
    for wrong in ("foreign.npz", "missing.npz"):
        with pytest.raises(InvalidInput):
            Reference.open(tmp_path / wrong, clip, quiet)


def test_expectations_are_told_as_they_came_out() -> None:
    def arm(clip: tuple[float, float, float], dfid: float) -> dict[str, list[float]]:
        return {"clip": list(clip), "dfid": [dfid, dfid - 0.1, dfid + 0.1]}

    difference = {"stylus": {"dfid": {"difference": [0.2, 0.1, 0.3]}}}
    better = {"base": arm((20, 19, 21), 0.3), "stylus": arm((25, 24, 26), 0.5)}
    told = expectations({"arms": better, "against_base": difference, "curve": {}})
    assert [claim["verdict"] for claim in told] == ["confirmed", "open"]
    close = {"base": arm((20, 19, 21), 0.3), "stylus": arm((21, 20, 22), 0.5), "random": arm((25, 24, 26), 0.5)}
    curve = {
        name: [{"clip": [clip, 0, 0], "dfid": [spread, 0, 0]} for clip, spread in points]
        for name, points in {"base": [(18, 0.4), (22, 0.2)], "stylus": [(20, 0.5), (24, 0.3)]}.items()
    }
    told = expectations({"arms": close, "against_base": difference, "curve": curve})
    assert [claim["verdict"] for claim in told] == ["refuted", "confirmed"]
    assert "below random" in told[0]["why"]
    assert "overlap with base" in told[0]["why"]


def test_the_command_evaluates_your_own_models_and_prompts(
    stylus: Stylus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stylus.settings.database_url is not None
    monkeypatch.setenv("STYLUS_DATABASE_URL", stylus.settings.database_url.get_secret_value())
    monkeypatch.setenv("STYLUS_DATA", str(stylus.settings.data))
    (tmp_path / "prompts.txt").write_text("a red star\na blue heart on a brick wall\n")
    command = ["evaluate", "run", "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out")]
    command += ["--clip", str(CLIP), "--preset", "counterfeit", "--no-hires", "--steps", "2", "--images", "1"]
    command += ["--arms", "stylus", "--curve-prompts", "0", "--no-overhead", "--json"]
    app(command, standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert set(told["arms"]) == {"base", "stylus"}
    assert "dfid" not in told["arms"]["base"]
    assert "no FID" in told["notes"][0]
    plan = Ledger.of(stylus.database, tmp_path / "out").plan
    assert (plan.suffix, plan.steps, plan.guidance, plan.hires) == ("high quality, anime style", 2, 6.0, False)
    assert Path(told["page"]).is_file()
    with pytest.raises(InvalidInput, match="preset"):
        app([*command, "--preset", "mine"], standalone_mode=False)
