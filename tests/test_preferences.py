"""What is remembered beside the cards: weights and pairs of a person, how loud adapters are, kept compositions."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stylus.catalog import Catalog
from stylus.composition_cache import CompositionCache
from stylus.database import Database
from stylus.errors import InvalidInput
from stylus.norms import Norms, file_norm, tensors_norm
from stylus.preferences import Preferences
from stylus.records import Adapter, BaseModelFamily, Filters, Kind


def test_a_weight_is_remembered_until_it_is_forgotten(database: Database) -> None:
    preferences = Preferences(database)
    preferences.set_weight("test:a", 0.4)
    preferences.set_weight("test:a", 0.5)
    preferences.set_weight("test:b", -1)
    assert preferences.weights() == {"test:a": 0.5, "test:b": -1.0}
    assert Preferences(database).weights(["test:a", "test:c"]) == {"test:a": 0.5}
    assert preferences.forget_weight("test:a")
    assert not preferences.forget_weight("test:a")
    assert preferences.weights() == {"test:b": -1.0}


@pytest.mark.parametrize("weight", [4.1, -5, math.nan, math.inf])
def test_a_weight_out_of_range_is_refused(database: Database, weight: float) -> None:
    with pytest.raises(InvalidInput, match=str(weight)):
        Preferences(database).set_weight("test:a", weight)


def test_a_pair_is_one_pair_in_either_order(database: Database) -> None:
    preferences = Preferences(database)
    preferences.flag_pair("test:b", "test:a", "draws something else together")
    preferences.flag_pair("test:a", "test:b", "still does")
    assert preferences.pairs() == {("test:a", "test:b"): "still does"}
    assert preferences.pairs(["test:b", "test:a", "test:c"]) == {("test:a", "test:b"): "still does"}
    assert preferences.pairs(["test:a", "test:c"]) == {}
    assert preferences.forget_pair("test:b", "test:a")
    assert preferences.pairs() == {}
    with pytest.raises(InvalidInput, match="twice"):
        preferences.flag_pair("test:a", "test:a", "")


def test_what_is_hidden_is_found_again_only_when_that_is_asked_for(database: Database) -> None:
    preferences, catalog = Preferences(database), Catalog(database)
    catalog.add([Adapter(id="test:a", name="one"), Adapter(id="test:b", name="two")])
    assert preferences.hide("test:a")
    assert not preferences.hide("test:a")
    assert not preferences.hide("test:unknown")
    assert preferences.hidden() == preferences.hidden(["test:a", "test:b"]) == {"test:a": "one"}
    assert preferences.hidden(["test:b"]) == {}
    assert [one.id for one in catalog.sample(Filters(), 9, 0)] == ["test:b"]
    assert preferences.hide("test:a", hidden=False)
    assert preferences.hidden() == {}


def test_a_draft_is_kept_until_the_catalog_changes(database: Database) -> None:
    cache, catalog = CompositionCache(database), Catalog(database)
    cache.put("key", '{"a": 1}', cache.revision())
    assert cache.get("key") == {"a": 1}
    catalog.add([Adapter(id="test:new", name="new")])
    assert cache.get("key") is None
    cache.put("late", "{}", cache.revision() - 1)
    assert cache.get("late") is None


def test_the_cache_is_bounded_and_keeps_what_was_used_last(database: Database) -> None:
    cache = CompositionCache(database, most=3)
    for key in "abc":
        cache.put(key, "{}", cache.revision())
    cache.get("a")
    cache.put("d", "{}", cache.revision())
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]


def factors(layer: str, scheme: tuple[str, str], size: float) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"{layer}.{scheme[0]}": size * torch.randn(2, 6), f"{layer}.{scheme[1]}": torch.randn(5, 2)}


@pytest.mark.parametrize(
    "scheme",
    [
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora_down.weight", "lora_up.weight"),
        ("lora.down.weight", "lora.up.weight"),
    ],
)
def test_the_norm_is_that_of_the_whole_weight_change(scheme: tuple[str, str]) -> None:
    one, two = factors("unet.a", scheme, 1.0), factors("unet.b", scheme, 3.0)
    expected = math.sqrt(
        float(torch.linalg.norm(one[f"unet.a.{scheme[1]}"] @ one[f"unet.a.{scheme[0]}"])) ** 2
        + float(torch.linalg.norm(two[f"unet.b.{scheme[1]}"] @ two[f"unet.b.{scheme[0]}"]) / 2) ** 2
    )
    alpha = {"unet.b.alpha": torch.tensor(1.0)}  # rank 2: a scale of a half
    assert tensors_norm({**one, **two, **alpha}) == pytest.approx(expected, rel=1e-5)


def test_what_is_no_pair_of_factors_has_no_norm(tmp_path: Path) -> None:
    good = factors("unet.a", ("lora_A.weight", "lora_B.weight"), 1.0)
    assert tensors_norm({}) is None
    assert tensors_norm({**good, "unet.a.lora_magnitude_vector": torch.ones(5)}) is None
    assert tensors_norm({"unet.a.lora_A.weight": torch.ones(2, 6)}) is None
    assert tensors_norm({key: tensor * math.nan for key, tensor in good.items()}) is None
    (tmp_path / "broken.safetensors").write_bytes(b"not one")
    assert file_norm(tmp_path / "broken.safetensors") is None
    assert file_norm(tmp_path / "missing.safetensors") is None


def test_norms_are_measured_once_and_again_for_another_file(database: Database, tmp_path: Path) -> None:
    adapters = []
    for number, size in enumerate((1.0, 2.0, 8.0)):
        path = tmp_path / f"{number}.safetensors"
        save_file(factors("unet.a", ("lora_A.weight", "lora_B.weight"), size), path)
        adapters.append(Adapter(id=f"test:{number}", name="x", base_model=BaseModelFamily.POCKET, file=str(path)))
    loha = Adapter(id="test:loha", name="x", kind=Kind.LOHA, file=adapters[0].file)
    Catalog(database).add([*adapters, loha])
    norms = Norms(database)
    assert norms.median(BaseModelFamily.POCKET) is None
    found = norms.measure([*adapters, loha])
    assert list(found) == ["test:0", "test:1", "test:2"]
    assert found["test:2"] == pytest.approx(8 * found["test:0"], rel=1e-5)
    assert norms.median(BaseModelFamily.POCKET) == pytest.approx(found["test:1"])
    assert norms.median(BaseModelFamily.SD15) is None
    for adapter in adapters:
        Path(adapter.file or "").unlink()
    assert norms.measure(adapters) == found
    moved = adapters[0].model_copy(update={"file": str(tmp_path / "other.safetensors")})
    assert norms.measure([moved]) == {}
