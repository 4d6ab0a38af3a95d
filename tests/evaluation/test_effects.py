"""The numbers of a report card on vectors whose answer is known, and what they say beside those of others."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stylus.evaluation.effects import (
    PROBES,
    Effect,
    Trouble,
    Verdict,
    agreement,
    effect,
    is_broken,
    kept,
    outlying,
    pointing,
    shows,
    verdicts,
)
from stylus.records import BaseModelFamily

WIDTH = 32
AXES = np.eye(WIDTH, dtype=np.float32)
GOOD = Effect(AXES[0], strength=2.0, consistency=0.7, strangeness=0.6, broken=0.0, kept=1.0)


def unit(vectors: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


@pytest.fixture
def base() -> np.ndarray:
    """Pictures [4 prompts, 6 images]: each prompt around an axis of its own."""
    rng = np.random.default_rng(0)
    return unit(AXES[:4, None] + 0.05 * rng.standard_normal((4, 6, WIDTH)))


def test_a_common_shift_has_its_direction_and_its_length_in_spreads(base: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    spread = np.sqrt(((base - base.mean((0, 1))) ** 2).sum(-1).mean())
    for length in (0.01, 0.5):
        found = effect(base, base, base + length * AXES[9], broken=0.0, kept=1.0)
        assert found.direction == pytest.approx(AXES[9], abs=1e-4)
        assert found.strength == pytest.approx(length / spread, rel=1e-4)
        assert found.consistency == pytest.approx(1.0, abs=1e-4)
    scattered = effect(base, base, base + 0.5 * unit(rng.standard_normal(base.shape)), broken=0.0, kept=1.0)
    assert scattered.strength < 0.3 * 0.5 / spread
    assert scattered.consistency < 0.4
    nothing = effect(base, base, base, broken=0.0, kept=1.0)
    assert (nothing.strength, nothing.consistency, nothing.strangeness) == (0, 0, 0)
    assert not nothing.direction.any()


def test_words_count_for_the_direction_and_not_for_the_strength(base: np.ndarray) -> None:
    """What the checkpoint makes of the trigger words is no doing of the weights."""
    worded = base + 0.4 * AXES[8]
    found = effect(base, worded, worded + 0.1 * AXES[9], broken=0.0, kept=1.0)
    assert found.direction @ AXES[8] == pytest.approx(0.4 / np.hypot(0.4, 0.1), abs=1e-3)
    assert found.strength == pytest.approx(effect(base, base, base + 0.1 * AXES[9], 0.0, 1.0).strength, rel=1e-4)


def test_strangeness_is_one_where_pictures_lie_as_far_as_prompts_from_each_other(base: np.ndarray) -> None:
    def strangeness(pictures: np.ndarray) -> float:
        return effect(base, base, pictures, broken=0.0, kept=1.0).strangeness

    elsewhere = np.broadcast_to(AXES[20], base.shape)
    assert strangeness(np.roll(base, 1, axis=0)) < 0.2  # other prompts' pictures are no strange ones
    assert strangeness(elsewhere) == pytest.approx(1.0, abs=0.1)
    assert strangeness(-unit(base.mean((0, 1)))[None, None] + 0 * base) > 1.2


def test_a_subject_is_kept_where_it_was_there_before() -> None:
    subjects = AXES[:3]
    assert shows(np.stack([AXES[0], AXES[1], AXES[0] + AXES[2] / 2]), subjects).tolist() == [True, False, True]
    before, after = np.array([True, True, False]), np.array([True, False, True])
    assert kept(before, after) == 0.5
    assert kept(np.zeros(3, bool), after) == 1.0


def test_flat_and_burnt_pictures_are_broken_unless_they_were_before() -> None:
    noise = np.random.default_rng(0).integers(40, 200, (32, 32, 3), np.uint8)
    picture = Image.fromarray(noise)
    flat = Image.new("RGB", (32, 32), (120, 60, 30))
    burnt = Image.fromarray(np.where(noise > 120, 255, 0).astype(np.uint8))
    assert [is_broken(each, picture) for each in (picture, flat, burnt)] == [False, True, True]
    assert not is_broken(flat, flat)
    assert not is_broken(burnt, burnt)


def test_texts_point_away_from_a_neutral_one() -> None:
    assert pointing(np.stack([AXES[0] + AXES[1], AXES[0] + AXES[2]]), AXES[0]) == pytest.approx(
        unit(AXES[1] + AXES[2]), abs=1e-6
    )


def catalogue(count: int = 12) -> tuple[list[Effect], list[np.ndarray]]:
    """Adapters that do what their cards say, each something of its own; all share what any adapter does."""
    rng = np.random.default_rng(2)
    effects = [
        replace(GOOD, direction=unit(AXES[n] + 0.5 * AXES[30]), strangeness=0.6 * 1.1 ** float(rng.standard_normal()))
        for n in range(count)
    ]
    return effects, [unit(AXES[n] + 0.8 * AXES[31]) for n in range(count)]


def test_each_trouble_is_found_and_nothing_else() -> None:
    effects, said = catalogue()
    assert {verdict.trouble for verdict in verdicts(effects, said)} == {None}
    effects[1] = replace(effects[1], strength=0.05)
    effects[2] = replace(effects[2], strangeness=6.0)
    effects[3] = replace(effects[3], broken=0.6)
    effects[4] = replace(effects[4], direction=-effects[4].direction)
    said[5], said[6] = said[6], said[5]
    troubles = {n: verdict.trouble for n, verdict in enumerate(verdicts(effects, said)) if verdict.trouble}
    assert troubles == {
        1: Trouble.NOTHING,
        2: Trouble.BREAKS,
        3: Trouble.BREAKS,
        4: Trouble.OTHERWISE,
        5: Trouble.OTHERWISE,
        6: Trouble.OTHERWISE,
    }


def test_adapters_are_compared_only_where_there_are_enough() -> None:
    effects, said = catalogue(6)
    assert verdicts(effects, said[::-1]) == [Verdict(None, None)] * 6
    assert outlying([1.0, 1.0, 50.0]) == [0, 0, 0]
    effects, said = catalogue()
    silent = agreement(effects, [None, *said[1:]])
    assert silent[0] is None
    assert all(found is not None and found > 0.9 for found in silent[1:])


def test_every_family_has_probes_that_hold_the_words_and_two_with_a_subject() -> None:
    for family in BaseModelFamily:
        for probe in PROBES[family]:
            assert probe.text(()) == probe.plain
            assert "xyzzy, plugh" in probe.text(("xyzzy", "plugh"))
            assert probe.subject is None or probe.subject.removeprefix("a ") in probe.plain
        assert sum(probe.subject is not None for probe in PROBES[family]) == 2
