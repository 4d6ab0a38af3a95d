"""Pictures for the model: small, and never from a place that only a card names."""

import io
from pathlib import Path

import pytest
from PIL import Image

from stylus.example_images import SIDE, Pictures, shrink
from stylus.records import Card, Example
from stylus.web import Web
from tests.pretend import Pretend


def png(width: int = 900, height: int = 300, mode: str = "RGB", format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, format)
    return out.getvalue()


def card(*images: str | Path) -> Card:
    examples = tuple(Example(image=str(image), prompt=f"prompt {n}") for n, image in enumerate(images))
    return Card(id="file:1", name="star", examples=examples)


@pytest.mark.parametrize(
    ("mode", "format"),
    [("RGB", "PNG"), ("RGBA", "PNG"), ("P", "GIF"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "WEBP")],
)
def test_every_kind_of_picture_becomes_a_small_jpeg(mode: str, format: str) -> None:
    with Image.open(io.BytesIO(shrink(png(mode=mode, format=format)))) as image:
        assert (image.format, image.mode, image.width, image.height) == ("JPEG", "RGB", SIDE, 171)


def test_only_files_of_ingested_folders_are_opened(tmp_path: Path) -> None:
    ingested, elsewhere = tmp_path / "loras", tmp_path / "private"
    for folder in (ingested, elsewhere):
        folder.mkdir()
        (folder / "x.png").write_bytes(png())
    (ingested / "link.png").symlink_to(elsewhere / "x.png")
    (ingested / "folder.png").mkdir()
    bad: list[str | Path] = [
        elsewhere / "x.png",
        ingested / "link.png",
        ingested / "folder.png",
        ingested / "gone.png",
        f"{ingested}/../private/x.png",
        "file:///etc/passwd",
        "x.png",
        "nul\0.png",
        "http://127.0.0.1:9/x.png",
        "https://169.254.169.254/x.png",
    ]
    pictures, missed = Pictures().of(card(*bad[:-1], ingested / "x.png"), {ingested})
    assert [picture.prompt for picture in pictures] == ["prompt 9"]
    assert missed == 9
    assert Pictures([Web("a source", "https://example.org")]).of(card(bad[-1]), {ingested}) == ([], 1)
    assert Pictures().of(card(ingested / "x.png"), ()) == ([], 1)


def test_ten_pictures_are_enough(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(8, 8))
    pictures, missed = Pictures().of(card(*[tmp_path / "x.png"] * 12), {tmp_path})
    assert (len(pictures), missed) == (10, 0)


def test_what_is_no_picture_is_left_out(tmp_path: Path) -> None:
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (100_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
    for name, data in {"empty": b"", "text": b"<html>", "cut": png()[:200], "huge": header + png()[33:]}.items():
        (tmp_path / name).write_bytes(data)
    names = [tmp_path / name for name in ("empty", "text", "cut", "huge")]
    assert Pictures().of(card(*names), {tmp_path}) == ([], 4)


def test_a_remote_picture_comes_from_its_source(tmp_path: Path) -> None:
    with Pretend() as server, Web("Pretend", server.url) as web:
        server.files["/star.png"] = png(16, 16)
        pictures, missed = Pictures([web]).of(card(f"{server.url}/star.png", f"{server.url}/gone.png"), ())
    assert (len(pictures), missed) == (1, 1)
