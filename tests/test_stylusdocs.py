"""StylusDocs: what the published files look like, and pickles that are not what they seem."""

import contextlib
import pickle
import pickletools
import struct
import sys
import tracemalloc
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stylus.errors import InvalidInput
from stylus.sources import plain_pickle
from stylus.sources.stylusdocs import Entry, read


@dataclass
class AdapterInfo:
    """The fields of the authors' class, in their order."""

    adapter_id: Any
    alias: str
    title: str
    base_model: str
    description: str
    tags: Any
    trigger_words: Any
    stats: dict[str, float]
    download_url: str
    llm_description: str | None = None
    image_urls: list[str] = field(default_factory=list)
    image_prompts: list[str] = field(default_factory=list)
    weight: float = 0.8


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> type[AdapterInfo]:
    """The class under the name of the module that the authors pickled it in."""
    name = "autoadapter.precompute.process_adapters"
    module = types.ModuleType(name)
    monkeypatch.setattr(AdapterInfo, "__module__", name)
    monkeypatch.setattr(module, "AdapterInfo", AdapterInfo, raising=False)
    for part in ("autoadapter", "autoadapter.precompute", name):
        monkeypatch.setitem(sys.modules, part, module)
    return AdapterInfo


def info(cls: type[AdapterInfo], number: Any = 7, **fields: Any) -> AdapterInfo:
    told: dict[str, Any] = {"download_url": f"https://civitai.com/api/download/models/{number}0?type=Model"}
    told |= {"description": "ink, as washes", "tags": ["style"], "trigger_words": ["inkwash"], "stats": {"rating": 4.5}}
    return cls(number, "ink", f"Ink {number}", "SD 1.5", **(told | fields))


def write(folder: Path, content: Any, protocol: int = 4) -> Path:
    path = folder / "sd_adapters.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


def entries(path: Path) -> tuple[list[Entry], dict[str, str]]:
    problems: dict[str, str] = {}
    return list(read(path, lambda where, why: problems.update({where: why}))), problems


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_published_shape_is_read_whole(tmp_path: Path, published: type[AdapterInfo], protocol: int) -> None:
    pictures = {"image_urls": ["https://x.org/1.png", "file:///etc/passwd"], "image_prompts": ["a boat", "None"]}
    write(
        tmp_path, [info(published, 7, **pictures), info(published, 8, llm_description="better", weight=0.6)], protocol
    )
    (tmp_path / "ultra_model").mkdir()
    (tmp_path / "ultra_model" / "7.txt").write_text("- Washes of grey - as if painted.\n- 0.7")
    np.save(tmp_path / "sd_embeddings.npy", np.eye(2, 5))
    (first, second), problems = entries(tmp_path)
    assert not problems
    card = first.card
    assert (card.id, card.group, card.name) == ("civitai:7", "civitai:7", "Ink 7")
    assert (card.description, card.weight) == ("Washes of grey as if painted.", 0.7)
    assert (card.tags, card.trigger_words, card.base_model, card.category) == (
        ("style",),
        ("inkwash",),
        "sd15",
        "style",
    )
    assert card.download == "https://civitai.com/api/download/models/70"
    assert [(e.image, e.prompt) for e in card.examples] == [("https://x.org/1.png", "a boat")]
    assert (second.card.description, second.card.weight) == ("better", 0.6)
    assert [entry.vector.tolist() for entry in (first, second) if entry.vector is not None] == np.eye(2, 5).tolist()


def test_other_shapes_and_flawed_adapters(tmp_path: Path, published: type[AdapterInfo]) -> None:
    write(tmp_path, {"5": {"name": "By id", "tags": "ink, grey", "description": None}, "6": 3})
    [entry], _ = entries(tmp_path / "sd_adapters.pkl")
    assert (entry.card.id, entry.card.tags, entry.vector) == ("civitai:5", ("ink", "grey"), None)
    endless: list[Any] = []
    endless.append(endless)
    flawed = [info(published, "a b"), info(published, None), 3, info(published, endless), info(published, "x" * 300)]
    odd = info(published, 9, tags=endless, trigger_words={"a": 1}, description=b"x", download_url=endless, weight="x")
    write(tmp_path, [*flawed, odd, odd])
    [entry], problems = entries(tmp_path)
    assert len(problems) == len(flawed)
    assert (entry.card.id, entry.card.tags, entry.card.download) == ("civitai:9", (), None)


def test_embeddings_must_fit_and_hold_no_objects(tmp_path: Path, published: type[AdapterInfo]) -> None:
    write(tmp_path, [info(published)])
    for array in (np.eye(2), np.zeros(3), np.array([[1, 2]]), np.array([[object()]]), np.zeros((1, 20_000))):
        np.save(tmp_path / "sd_embeddings.npy", array, allow_pickle=True)
        with pytest.raises(InvalidInput, match=r"sd_embeddings\.npy"):
            entries(tmp_path)
    (tmp_path / "sd_embeddings.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InvalidInput, match=r"sd_embeddings\.npy"):
        entries(tmp_path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"sd_adapters\.pkl"):
        entries(tmp_path)
    contents: list[Any] = [[], {}, 3, "text"]
    for content in contents:
        write(tmp_path, content)
        with pytest.raises(InvalidInput, match="no list of adapters"):
            entries(tmp_path)


PLAIN: list[Any] = [
    None, True, -1, 2**70, 1.5, "aé", b"x", bytearray(b"y"), [], (), {}, set(),
    [1, [2, (3,)], {"a": [4]}], (1, 2), (1, 2, 3), (1, 2, 3, 4), {"a": 1, 2: "b", None: 3, b"c": 4}, {1, 2},
    frozenset({1}), ["x" * 300, "x" * 70_000], list(range(3000)), {str(n): n for n in range(3000)},
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_out_as_they_went_in(tmp_path: Path, protocol: int) -> None:
    # Before protocol 4 Python writes sets, before 3 bytes, before 5 bytearrays, as calls.
    kept = [v for v in PLAIN if not (isinstance(v, set | frozenset) and protocol < 4)]
    kept = [v for v in kept if not (isinstance(v, bytearray) and protocol < 5)]
    if protocol < 3:
        kept = [v for v in kept if not isinstance(v, bytes) and not (isinstance(v, dict) and b"c" in v)]
    twice = [kept, kept]
    loaded = plain_pickle.load(write(tmp_path, twice, protocol))
    assert loaded == twice
    assert loaded[0] is loaded[1]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('it ran')",)


def _hostile() -> dict[str, bytes]:
    nested = b"(" * 10 + b"t" * 9
    hashed = b"\x80\x02})" + b"0)2\x86" + b"2\x86" * 60 + b"Ns."
    return {
        "reduce": pickle.dumps(Evil()),
        "global": b"cos\nsystem\n(S'true'\ntR.",
        "global without a call": b"cos\nsystem\n.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        "stack global of no text": b"\x80\x04K\x01K\x02\x93.",
        "old instance": b"(S'true'\nios\nsystem\n.",
        "object": b"(cos\nsystem\no.",
        "persistent id": b"Pwhat\n.",
        "extension": b"\x80\x02\x82\x01.",
        "class with arguments": b"\x80\x02c__main__\nAdapterInfo\nK\x01\x85\x81.",
        "object of no class": b"\x80\x02K\x01)\x81.",
        "state of a list": b"\x80\x02]}b.",
        "append to a class": b"\x80\x02c__main__\nAdapterInfo\nK\x01a.",
        "memo bomb": b"\x80\x02]r\xff\xff\xff\x7f0" + b"j\x00\x00\x00\x01.",
        "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
        "text that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
        "long number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        "decimal number": b"I" + b"9" * 100_000 + b"\n.",
        "hash bomb": hashed,
        "colliding numbers": b"\x80\x02}\x8a\x08" + b"\xff" * 7 + b"\x1f" + b"Ns.",
        "list as key": b"\x80\x02}]Ns.",
        "no value": b".",
        "no mark": b"\x80\x02]e.",
        "half": pickle.dumps(list(range(100)))[:-10],
        "no end": b"\x80\x02]",
        "text": b"<html>not a pickle</html>",
        "nested marks": nested,
        "unknown memo": b"\x80\x02h\x05.",
        "ufunc": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.",
    }


@pytest.mark.parametrize("name", _hostile())
def test_hostile_pickles_are_refused_with_a_reason(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, _hostile()[name])
    with pytest.raises(InvalidInput, match=r"refused|no whole pickle") as caught:
        plain_pickle.load(path, frozenset({"AdapterInfo"}))
    assert str(path) in str(caught.value)


def test_shared_values_do_not_multiply(tmp_path: Path) -> None:
    """A billion laughs: 100 lists, each holding the one before twice. Two to the hundredth, if anything copied them."""
    doubled: list[Any] = []
    for _ in range(100):
        doubled = [doubled, doubled]
    write(tmp_path, [{"adapter_id": 1, "title": doubled, "tags": doubled, "download_url": doubled}])
    [entry], _ = entries(tmp_path)
    assert entry.card.name == "civitai:1"


def test_a_dict_that_many_adapters_share_is_not_copied(tmp_path: Path) -> None:
    shared = {str(n): n for n in range(20_000)}
    write(tmp_path, dict.fromkeys(range(300), shared))
    tracemalloc.start()
    try:
        found, _ = entries(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert len(found) == 300


def test_a_state_that_many_objects_share_is_refused(
    tmp_path: Path, published: type[AdapterInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_pickle, "MOST_INSTRUCTIONS", 50_000)
    objects, state = [published.__new__(published) for _ in range(100)], {str(n): n for n in range(1000)}
    for one in objects:
        one.__dict__ = state
    write(tmp_path, objects)
    with pytest.raises(InvalidInput, match="attributes"):
        entries(tmp_path)


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_pickle, "MOST_INSTRUCTIONS", 1000)
    with pytest.raises(InvalidInput, match="instructions"):
        plain_pickle.load(write(tmp_path, list(range(2000))))
    monkeypatch.setattr(plain_pickle, "MOST_BYTES", 10)
    with pytest.raises(InvalidInput, match="bytes"):
        plain_pickle.load(write(tmp_path, list(range(2000))))
    with pytest.raises(InvalidInput, match="0 bytes"):
        plain_pickle.load(write(tmp_path, b""))


def test_no_instruction_of_python_that_calls_or_imports_is_carried_out() -> None:
    refused = set[str]()
    for opcode in pickletools.opcodes:
        stack = plain_pickle._Stack(frozenset())
        stack._values, stack._marks, stack._memo = [[], {}, "a", "b", "c"], [1], {0: 1}
        with contextlib.suppress(LookupError, TypeError, ValueError):
            try:
                stack.do(opcode.name, "os system")
            except plain_pickle._Refused:
                refused.add(opcode.name)
    calls = {"REDUCE", "INST", "OBJ", "GLOBAL", "STACK_GLOBAL", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
    outside = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
    assert calls | outside <= refused
