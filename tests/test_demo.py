"""The demo, as `make demo` runs it, on one of its prompts."""

from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from stylus.demo import COUNT, run_demo
from stylus.errors import StorageError, StylusError
from stylus.pocket import prompts
from stylus.settings import Settings


@pytest.fixture(autouse=True)
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """This test's database and data folder, also for the server that the demo starts."""
    assert settings.database_url is not None
    monkeypatch.setenv("STYLUS_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("STYLUS_DATA", str(settings.data))


def test_demo_draws_judges_and_writes_pictures(tmp_path: Path) -> None:
    prompt = next(prompt for prompt in prompts() if prompt.demo)
    terminal = Console(record=True, width=200)
    result = run_demo(tmp_path / "out", terminal, [prompt])
    assert set(result["seconds"]) == {"search", "compose", "load", "generate"}
    assert result["concept_rate"]["stylus"] > result["concept_rate"]["base"]
    sheet, *pictures = result["images"]
    assert len(pictures) == 2 * COUNT
    sizes = []
    for path in (sheet, *pictures):
        with Image.open(path) as picture:
            sizes.append(picture.size)
    assert sizes[0][0] > 1000
    assert set(sizes[1:]) == {(64, 64)}
    assert prompt.text in terminal.export_text()


def test_a_demo_that_can_not_go_on_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="name another folder"):
        run_demo(tmp_path / "file", Console(quiet=True))
    monkeypatch.setenv("STYLUS_STORE", "nosuch://bucket")
    with pytest.raises(StylusError, match=r"generate_image.*Protocol not known: nosuch"):
        run_demo(tmp_path / "out", Console(quiet=True))
    monkeypatch.setenv("STYLUS_AUDIT", str(tmp_path / "file" / "audit.log"))
    with pytest.raises(StylusError, match="the server of the demo broke off"):
        run_demo(tmp_path / "out", Console(quiet=True))


def test_eight_prompts_are_marked_for_the_demo() -> None:
    assert len([prompt for prompt in prompts() if prompt.demo]) == 8
