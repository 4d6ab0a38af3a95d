"""Pictures to start from, early refusals, the content filter and replays, on a tiny pipeline and a real catalog."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from stylus.errors import AdapterFileError, GenerationError, InvalidInput, NotFound, StorageError
from stylus.records import ContentFilter, MaskMode, Progress, Rating, Request
from stylus.settings import Settings
from stylus.stylus import Stylus
from tests.generation import tiny

COMPOSITION = tiny.composition({"one": 0.9})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny.write_pipeline(folder)
    return folder


@pytest.fixture
def stylus(settings: Settings, folder: Path, tmp_path: Path) -> Iterator[Stylus]:
    configured = {"checkpoints": {"sd15": str(folder)}, "device": "cpu", "store": str(tmp_path / "store")}
    with Stylus(settings.model_copy(update=configured)) as opened:
        add_adapter(opened, tmp_path, seed=1)
        yield opened


def add_adapter(stylus: Stylus, folder: Path, seed: int, rating: Rating = Rating.GENERAL) -> Path:
    random = torch.Generator().manual_seed(seed)
    tensors = {
        "unet.conv_in.lora_A.weight": torch.randn(4, 4, 3, 3, generator=random),
        "unet.conv_in.lora_B.weight": torch.randn(32, 4, 1, 1, generator=random),
    }
    path = tiny.write(folder / "one.safetensors", tensors)
    stylus.catalog.add([tiny.adapter("one", path, rating=rating)])
    return path


def png(colour: str = "red", size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def pixels(location: str) -> np.ndarray:
    with Image.open(location) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def test_inpainting_by_ids(stylus: Stylus, tmp_path: Path) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    image, kept = stylus.pictures.keep_image(png()), stylus.pictures.keep_mask(buffer.getvalue())
    assert image == stylus.pictures.keep_image(png())
    (record,) = stylus.generate(COMPOSITION, seed=3, steps=3, image=image, mask=kept)
    drawn = pixels(record.location)
    assert (drawn[:, 32:] == (255, 0, 0)).all()
    assert (drawn[:, :32] != (255, 0, 0)).any()
    again = stylus.pictures.replay(record.location)
    assert (again.same, again.differences) == (True, ())


def test_a_picture_serves_as_a_mask_and_a_mask_as_a_picture(stylus: Stylus) -> None:
    picture, mask = stylus.pictures.keep_image(png("white")), stylus.pictures.keep_mask(png("white"))
    (record,) = stylus.generate(COMPOSITION, seed=3, steps=3, image=mask, mask=picture)
    with Image.open(record.location) as drawn:
        assert drawn.mode == "RGB"
        assert np.ptp(np.asarray(drawn), axis=2).any()
    with pytest.raises(InvalidInput, match="black all over"):
        stylus.request(COMPOSITION, image=picture, mask=stylus.pictures.keep_image(png("black")))


def test_pictures_that_were_not_kept_or_were_changed(stylus: Stylus, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"pass the picture itself again.*replay.*STYLUS_STORE"):
        stylus.request(COMPOSITION, image="0" * 64)
    id = stylus.pictures.keep_image(png())
    (tmp_path / "store" / "inputs" / f"{id}.png").write_bytes(png("blue"))
    with pytest.raises(InvalidInput, match="was changed"):
        stylus.request(COMPOSITION, image=id)
    for fields in ({"mask": id}, {"strength": 0.5}, {"image": "../../etc/passwd"}, {"image": id, "strength": 1.5}):
        with pytest.raises(ValueError, match=r"mask|strength|image"):
            Request(composition=COMPOSITION, **fields)


def test_a_mask_of_other_proportions_is_found_before_anything_is_queued(stylus: Stylus) -> None:
    image, mask = stylus.pictures.keep_image(png()), stylus.pictures.keep_mask(png("white", (64, 32)))
    with pytest.raises(InvalidInput, match=r"64x32.*64x64.*proportions"):
        stylus.request(COMPOSITION, image=image, mask=mask)


def test_damaged_files_are_found_before_anything_is_queued(stylus: Stylus, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    path.write_bytes(b"<html>not found</html>" * 20)
    with pytest.raises(AdapterFileError, match="web page"):
        stylus.request(COMPOSITION)
    path.unlink()
    with pytest.raises(NotFound, match=r"test:one.*is gone.*stylus hide ID"):
        stylus.request(COMPOSITION)
    stylus.catalog.add([tiny.adapter("one", path).model_copy(update={"file": None})])
    with pytest.raises(NotFound, match=r"test:one is a card without weights"):
        stylus.request(COMPOSITION)
    stylus.request(COMPOSITION, masks=MaskMode.NONE)


def test_a_store_that_can_not_be_written_is_found_before_anything_is_drawn(
    settings: Settings, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    for store in (str(tmp_path / "file"), "nosuch://bucket/images"):
        configured = {"checkpoints": {"sd15": str(folder)}, "device": "cpu", "store": store}
        seen: list[Progress] = []
        with (
            Stylus(settings.model_copy(update=configured)) as stylus,
            pytest.raises(StorageError, match="STYLUS_STORE"),
        ):
            stylus.generate(tiny.composition(), steps=3, on_progress=seen.append)
        assert not seen


def test_options_beside_a_request_are_refused(stylus: Stylus) -> None:
    """They were ignored: one picture came where four were asked for."""
    with pytest.raises(InvalidInput, match="count, seed would change nothing"):
        stylus.generate(stylus.request(COMPOSITION, steps=3), count=4, seed=1)


def test_a_replay_says_what_differs(stylus: Stylus, tmp_path: Path) -> None:
    record = stylus.generate(COMPOSITION, seed=3, steps=3, count=2)[1]
    assert stylus.pictures.replay(record.location).same
    add_adapter(stylus, tmp_path, seed=2)
    other = stylus.pictures.replay(record.location)
    assert not other.same
    assert other.largest > 1
    assert any("the file of adapter test:one has changed" in line for line in other.differences)
    assert pixels(record.location).shape == np.asarray(other.image).shape


def test_the_images_of_one_generation_are_listed_in_their_order(stylus: Stylus) -> None:
    records = stylus.generate(tiny.composition(), seed=3, steps=2, count=3)
    assert [image.index for image in stylus.history.recent_images(limit=3)] == [0, 1, 2]
    assert len({record.created_at for record in records}) == 1


def edited(location: str, path: Path, **changes: object) -> str:
    """The picture with other fields in its record; without any, with other pixels."""
    with Image.open(location) as image:
        record = json.loads(image.text["stylus"]) | changes  # type: ignore[attr-defined]
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("stylus", json.dumps(record))
        (image if changes else Image.new("RGB", image.size, "green")).save(path, pnginfo=chunks)
    return str(path)


def test_records_are_read_with_distrust(stylus: Stylus, tmp_path: Path) -> None:
    (record,) = stylus.generate(COMPOSITION, seed=3, steps=3)
    for changes, words in (
        ({"request": {"composition": "all of it"}}, "can't be followed"),
        ({"index": 7}, "names image 7 of 1"),
        ({"at_once": 10**9}, "can't be followed"),
        ({"versions": ["torch"]}, "can't be followed"),
    ):
        with pytest.raises(InvalidInput, match=words):
            stylus.pictures.replay(edited(record.location, tmp_path / "edited.png", **changes))
    painted = stylus.pictures.replay(edited(record.location, tmp_path / "edited.png"))
    assert not painted.same
    assert painted.differences == (
        "the pixels, though all that is recorded is as it was: the picture was edited since",
    )
    path = tmp_path / "edited.png"
    with Image.open(record.location) as image:
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("stylus", image.text["stylus"])  # type: ignore[attr-defined]
        gone = image.convert("RGBA")
        gone.putalpha(0)
        for changed, unseen, words in (
            (gone, None, "is transparent, now it is RGB"),
            (image, image.getpixel((0, 0)), "is transparent"),
            (image.convert("L"), None, "is L, now it is RGB"),
        ):
            changed.save(path, pnginfo=chunks, transparency=unseen)
            other = stylus.pictures.replay(str(path))
            assert (other.same, other.largest) == (False, 255)
            assert words in other.differences[0]
    evil = "\x1b[31mevil\x07"
    torches = record.provenance["versions"] | {"torch": evil}
    changes = {
        "versions": torches | {evil: "1"},
        "checkpoint": {"name": evil, "sha256": evil},
        "adapters": [{"id": evil, "sha256": "0"}],
        "notes": [evil],
        **dict.fromkeys(("device", "hardware", "dtype"), evil),
    }
    told = stylus.pictures.replay(edited(record.location, tmp_path / "edited.png", **changes)).differences
    assert len(told) == 8
    assert all("evil" in line and line.isprintable() for line in told)
    with pytest.raises(InvalidInput, match="evil") as refused:
        stylus.pictures.replay(edited(record.location, tmp_path / "edited.png", versions={evil: 1}))
    assert str(refused.value).isprintable()
    plain = tmp_path / "plain.png"
    plain.write_bytes(png())
    with pytest.raises(InvalidInput, match="no Stylus record"):
        stylus.pictures.replay(str(plain))


@pytest.mark.parametrize("mode", ContentFilter)
def test_content_filter_by_the_ratings_of_adapters(
    mode: ContentFilter, settings: Settings, folder: Path, tmp_path: Path
) -> None:
    configured = {"checkpoints": {"sd15": str(folder)}, "device": "cpu", "content_filter": mode}
    with Stylus(settings.model_copy(update=configured)) as stylus:
        add_adapter(stylus, tmp_path, seed=1, rating=Rating.MATURE)
        if mode is ContentFilter.BLOCK:
            with pytest.raises(GenerationError, match=r"test:one is rated mature.*STYLUS_CONTENT_FILTER"):
                stylus.request(COMPOSITION)
            return
        request = stylus.request(COMPOSITION, seed=3, steps=2)
        (record,) = stylus.generate(request)
        (control,) = stylus.generate(stylus.control(request))
    assert (record.rating, record.flagged) == (Rating.MATURE, mode is ContentFilter.FLAG)
    assert (control.rating, control.flagged) == (Rating.GENERAL, False)
    assert any("Flagged" in note for note in record.notes) == record.flagged


@pytest.mark.parametrize("mode", ContentFilter)
def test_content_filter_by_the_owners_judge(
    mode: ContentFilter, settings: Settings, folder: Path, tmp_path: Path
) -> None:
    configured = {"checkpoints": {"sd15": str(folder)}, "device": "cpu", "content_filter": mode}
    with Stylus(settings.model_copy(update=configured), judge=lambda image: "too colourful") as stylus:
        (record,) = stylus.generate(tiny.composition(), seed=3, steps=2)
    assert record.flagged == (mode is not ContentFilter.OFF)
    grey = (pixels(record.location) == pixels(record.location)[0, 0]).all()
    assert grey == (mode is ContentFilter.BLOCK)
    assert any("too colourful" in note for note in record.notes) == record.flagged
    assert record.provenance["notes"] == list(record.notes)


def test_a_replay_does_not_undo_the_content_filter(settings: Settings, folder: Path) -> None:
    configured = {"checkpoints": {"sd15": str(folder)}, "device": "cpu"}
    blocking = settings.model_copy(update={**configured, "content_filter": ContentFilter.BLOCK})
    with Stylus(settings.model_copy(update=configured)) as stylus:
        (open_,) = stylus.generate(tiny.composition(), seed=3, steps=2)
    with Stylus(blocking, judge=lambda image: "unfit") as stylus:
        (blocked,) = stylus.generate(tiny.composition(), seed=3, steps=2)
        again = stylus.pictures.replay(blocked.location)
        assert (again.same, again.differences) == (True, ())
        assert (np.asarray(again.image) == pixels(blocked.location)).all()
        now = stylus.pictures.replay(open_.location)
        assert (np.asarray(now.image) == pixels(blocked.location)).all()
        assert now.differences == ("only now: Blocked by the content filter: unfit.",)
    with Stylus(settings.model_copy(update=configured)) as stylus:
        then = stylus.pictures.replay(blocked.location)
    assert then.differences == ("only then: Blocked by the content filter: unfit.",)


def test_a_store_in_memory(settings: Settings, folder: Path) -> None:
    configured = {"checkpoints": {"sd15": str(folder)}, "device": "cpu", "store": "memory://pictures"}
    with Stylus(settings.model_copy(update=configured)) as stylus:
        image = stylus.pictures.keep_image(png())
        (record,) = stylus.generate(tiny.composition(), seed=3, steps=2, image=image)
        assert record.location.startswith("memory://")
        assert stylus.pictures.replay(record.location).same
