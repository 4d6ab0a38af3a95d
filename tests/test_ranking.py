"""Fusion and folding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylus.ranking import CONSTANT, fold, fuse
from stylus.records import Adapter


def test_what_several_lists_agree_on_comes_first_and_the_best_of_all_is_1() -> None:
    fused = fuse([(["a", "b", "c"], 1.0), (["b", "d"], 1.0), ([], 5.0)])
    assert list(fused) == ["b", "a", "d", "c"]
    assert fused["b"] == pytest.approx((1 / (CONSTANT + 2) + 1 / (CONSTANT + 1)) / (2 / (CONSTANT + 1)))
    assert fuse([(["a"], 1.0), (["a"], 0.5)]) == {"a": 1.0}
    assert fuse([]) == {}
    assert list(fuse([(["a", "b"], 1.0), (["b"], 0.01)])) == ["a", "b"]


def adapter(id: str, **fields: object) -> Adapter:
    return Adapter.model_validate({"id": id, "name": id, **fields})


def test_near_duplicates() -> None:
    catalog = [
        adapter("a:1", sha256="AB", group="m:1", base_model="sd15"),
        adapter("a:2", sha256="ab"),
        adapter("a:3", group="m:1", base_model="sd15"),
        adapter("a:4", group="m:1", base_model="sdxl"),
        adapter("a:5", name="Moon", author="Ada"),
        adapter("a:6", name="moon", author="ada"),
        adapter("a:7", name="Moon", author="Bob"),
        adapter("a:8", name="Moon"),
        adapter("a:9", name="Moon"),
    ]
    folded = fold([a.id for a in catalog], {a.id: a for a in catalog})
    assert folded == {"a:1": ["a:2", "a:3"], "a:4": [], "a:5": ["a:6"], "a:7": [], "a:8": [], "a:9": []}


FEW = st.sampled_from([None, "x", "y"])


@given(st.lists(st.tuples(FEW, FEW, FEW, st.sampled_from(["n", "m"])), max_size=12))
def test_folding_loses_none_and_repeats_none(rows: list[tuple[str | None, str | None, str | None, str]]) -> None:
    catalog = {
        f"a:{i}": adapter(f"a:{i}", sha256=sha, group=group, author=author, name=name)
        for i, (sha, group, author, name) in enumerate(rows)
    }
    folded = fold(catalog, catalog)
    seen = [*folded, *(id for others in folded.values() for id in others)]
    assert sorted(seen) == sorted(catalog)
    assert list(folded) == [id for id in catalog if id in folded]
    kept = [catalog[id] for id in folded]
    assert len({a.sha256 for a in kept if a.sha256}) == sum(a.sha256 is not None for a in kept)
