"""What `stylus doctor --library` says of a catalog with one of each trouble."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from stylus.catalog import Catalog
from stylus.cli import app
from stylus.database import Database
from stylus.files import Files
from stylus.ingest import ingest_folder
from stylus.library import check_files, examine_library, fault_of
from stylus.records import Adapter, BaseModelFamily, Example, Filters, Progress
from stylus.settings import Settings
from tests.word_embedder import WordEmbedder

LAYER = "lora_unet_down_blocks_{}_attentions_0_transformer_blocks_0_attn2_to_k"


def weights(path: Path, value: float = 0.5, *, layers: int = 4, width: int = 768, change: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{LAYER.format(n)}.lora_down.weight": np.full((2, width), value, np.float16) for n in range(layers)}
    tensors |= {f"{LAYER.format(n)}.alpha": np.full((), 128, np.float16) for n in range(layers)}
    if change is not None:
        tensors[f"{LAYER.format(0)}.lora_down.weight"][1, 3] = change
    save_file(tensors, path)
    return path


def ingest(database: Database, root: Path) -> None:
    ingest_folder(root, Catalog(database), Files(database), WordEmbedder(), lambda *_: None)


def test_each_trouble_is_counted_and_has_its_remedy(database: Database, tmp_path: Path) -> None:
    root = tmp_path / "my loras"
    good = weights(root / "good.safetensors")
    card = {"activation text": "word", "sd version": "SD1"}
    good.with_suffix(".json").write_text(json.dumps(card))
    good.with_suffix(".png").write_bytes(b"a picture")
    weights(root / "copy.safetensors")
    weights(root / "sd2.safetensors", width=1024)
    liar = weights(root / "liar.safetensors", 0.25)
    liar.with_suffix(".json").write_text(json.dumps({**card, "sd version": "SDXL"}))
    for version in (1, 2):
        path = weights(root / f"v{version}.safetensors", version)
        path.with_suffix(".civitai.info").write_text(json.dumps({"modelId": 7, "id": version}))
    gone = weights(root / "deep" / "gone.safetensors", 0.75)
    ingest(database, root)
    gone.unlink()
    with database.connection() as connection:
        connection.execute("update adapters set refined = true where name = 'v1'")
        connection.execute("update adapters set file = %s where name = 'v2'", [str(root / "v1.safetensors")])
    fetched = Adapter(id="civitai:7@3", name="fetched", group="civitai:8", refined=True, trigger_words=("x",))
    fetched = fetched.model_copy(
        update={"base_model": BaseModelFamily.SD15, "examples": (Example(image="https://x/"),)}
    )
    address = {"download": "https://civitai.com/api/download/models/3", "file": str(root / "thrown away.safetensors")}
    Catalog(database).add([fetched.model_copy(update=address)])
    findings = {finding.what: finding for finding in examine_library(database)}
    assert {what: finding.count for what, finding in findings.items()} == {
        "missing files": 1,
        "copies of one file": 1,
        "one file under several ids": 2,
        "versions of one model": 2,
        "unknown base model": 1,
        "wrong base model on the card": 1,
        "no trigger words": 4,
        "no examples": 5,
        "unrefined": 5,
        "suspicious": 0,
        "breaks the picture": 0,
        "does nothing": 0,
        "doesn't do what its card says": 0,
    }
    assert findings["missing files"].mend.endswith(f"stylus ingest folder '{root / 'deep'}'")
    assert findings["missing files"].ids[0].startswith("file:")
    assert findings["missing files"].names == ("gone",)


def test_files_that_cant_be_right_are_flagged_until_they_are_mended(database: Database, tmp_path: Path) -> None:
    weights(tmp_path / "a_good.safetensors")
    bad = weights(tmp_path / "b_bad.safetensors", change=float("nan"))
    weights(tmp_path / "c_by_hand.safetensors", 0.125, change=float("inf"))
    ingest(database, tmp_path)
    with database.connection() as connection:
        connection.execute("update adapters set quality = 'ugly' where name = 'c_by_hand'")
    progress: list[Progress] = []
    check_files(database, progress.append)
    assert [(p.done, p.total) for p in progress] == [(1, 3), (2, 3), (3, 3)]

    def flags() -> dict[str, str]:
        with database.connection() as connection:
            return dict(connection.execute("select name, quality from adapters where quality is not null").fetchall())

    assert flags() == {
        "b_bad": f"file check: {LAYER.format(0)}.lora_down.weight holds NaN or infinity",
        "c_by_hand": "ugly",
    }
    assert {f.what: f.count for f in examine_library(database)}["suspicious"] == 2
    nearest = Catalog(database).nearest(WordEmbedder().queries(["a"])[0], "words", Filters(), 9)
    assert [adapter.name for adapter, _ in nearest] == ["a_good"]
    with database.connection() as connection:
        connection.execute("update adapters set file = %s where name = 'b_bad'", [str(tmp_path / "a_good.safetensors")])
    check_files(database)
    assert flags() == {"c_by_hand": "ugly"}
    (tmp_path / "a_good.safetensors").unlink()
    check_files(database)
    assert flags() == {"c_by_hand": "ugly"}
    assert bad.is_file()


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"change": 3000.0}, "holds 3,000, beyond"),
        ({"change": -3000.0}, "holds 3,000, beyond"),
        ({"value": 0.0}, "are 0"),
        ({"layers": 1}, "1 layers only"),
        ({}, None),
    ],
)
def test_faults_of_tensors(tmp_path: Path, made: dict[str, float], says: str | None) -> None:
    fault = fault_of(weights(tmp_path / "x.safetensors", **made))  # type: ignore[arg-type]
    assert fault is None if says is None else says in str(fault)


@pytest.mark.parametrize("name", ["dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight"])
def test_norms_of_layers_may_be_large(tmp_path: Path, name: str) -> None:
    path = weights(tmp_path / "x.safetensors")
    save_file(load_file(path) | {f"{LAYER.format(0)}.{name}": np.full(320, 150, np.float16)}, path)
    assert fault_of(path) is None


def test_a_file_that_was_cut_short_or_is_gone_is_a_fault(tmp_path: Path) -> None:
    path = weights(tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    assert "truncated" in str(fault_of(path))
    path.unlink()
    assert "can't be read" in str(fault_of(path))


def test_the_command_shows_what_was_found(
    database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.database_url is not None
    monkeypatch.setenv("STYLUS_DATABASE_URL", settings.database_url.get_secret_value())
    shown = CliRunner().invoke(app, ["doctor", "--library"])
    assert (shown.exit_code, shown.output) == (0, "Nothing is wrong with the adapters of the catalog.\n")
    weights(tmp_path / "[b]ad.safetensors", float("nan"))
    ingest(database, tmp_path)
    findings = json.loads(CliRunner().invoke(app, ["doctor", "--library", "--deep", "--json"]).stdout)
    assert {f["what"]: f["names"] for f in findings if f["count"]}["suspicious"] == ["[b]ad"]
    assert "[b]ad" in CliRunner().invoke(app, ["doctor", "--library"]).output


def test_nobody_is_sent_to_read_the_whole_disk(database: Database, tmp_path: Path) -> None:
    """Files of two disks have the root in common, which was the folder to ingest."""
    places = ("/no-such-disk/a.safetensors", str(tmp_path / "b.safetensors"))
    Catalog(database).add([Adapter(id=f"file:{n}", name="gone", file=place) for n, place in enumerate(places)])
    [missing] = [finding for finding in examine_library(database) if finding.what == "missing files"]
    assert missing.count == 2
    assert missing.mend.endswith("stylus ingest folder FOLDER")
