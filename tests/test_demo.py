"""The demo, as `make demo` runs it, on one of its prompts."""

from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from stylus.demo import COUNT, run_demo
from stylus.pocket import prompts
from stylus.settings import Settings


def test_demo_draws_judges_and_writes_pictures(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.database_url is not None
    monkeypatch.setenv("STYLUS_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("STYLUS_DATA", str(settings.data))
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


def test_eight_prompts_are_marked_for_the_demo() -> None:
    assert len([prompt for prompt in prompts() if prompt.demo]) == 8
