"""The whole loop on the pocket world, through the one object that all callers use."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from stylus.errors import Cancelled, InvalidInput, NotFound
from stylus.ingest import ingest_pocket
from stylus.pictures import image_id
from stylus.records import Adapter, BaseModelFamily, Filters, Pick, Progress
from stylus.settings import Settings
from stylus.stylus import Stylus


@pytest.fixture
def stylus(settings: Settings) -> Iterator[Stylus]:
    with Stylus(settings) as opened:
        ingest_pocket(opened.catalog, opened.embedder)
        yield opened


def pixels(location: str) -> np.ndarray:
    return np.asarray(Image.open(location).convert("RGB"), dtype=np.int16)


def test_prompt_becomes_pictures_that_the_adapter_changed(stylus: Stylus) -> None:
    composition = stylus.compose("a red star on a blue background")
    assert "pocket:star" in [choice.adapter_id for choice in composition.choices]
    request = stylus.request(composition, count=2, seed=5)
    images = stylus.generate(request)
    assert [image.seed for image in images] == [5, 6]
    assert all(image.adapters["pocket:star"] > 0 for image in images)
    control = stylus.generate(stylus.control(request))
    assert control[0].adapters == {}
    assert np.abs(pixels(images[0].location) - pixels(control[0].location)).mean() > 1
    assert stylus.history.image(images[0].id) == images[0]
    assert stylus.history.composition(composition.id) == composition


def test_control_characters_are_taken_out_of_all_that_is_written_down(stylus: Stylus) -> None:
    picks = [Pick(id="pocket:star", task="\x1b[31m a\nshape\0"), Pick(id="pocket:heart", task="\0")]
    composition = stylus.compose("a red star", picks=picks)
    name = composition.tasks[1].choices[0].name
    assert [task.keyword for task in composition.tasks] == ["[31m a shape", name]
    assert stylus.request(composition, negative_prompt=" blurred\0\x1b\n").negative_prompt == "blurred"
    assert stylus.request(composition, negative_prompt="\0").negative_prompt == ""


def test_a_control_image_needs_one_to_compare_with(stylus: Stylus) -> None:
    with pytest.raises(InvalidInput, match=r"count of 1 .* pass a count of 2 or more"):
        stylus.generate("a red star", control=True)
    assert stylus.request("a red star", control=True, count=2).control


def test_names_of_adapters_as_other_tools_write_them_are_not_drawn(stylus: Stylus) -> None:
    composition = stylus.compose("a red star, <lora:foo:0.7>, on a blue background")
    assert composition.prompt == "a red star, on a blue background"
    assert any("<lora:foo:0.7> was taken out" in note for note in composition.notes)
    with pytest.raises(InvalidInput, match="only names adapters, <lora:foo:1>"):
        stylus.compose(" <lora:foo:1>, ")


def test_same_request_gives_the_same_pixels(stylus: Stylus) -> None:
    request = stylus.request("a green heart", count=1, seed=11)
    first, second = stylus.generate(request), stylus.generate(request)
    assert first[0].id != second[0].id
    assert np.array_equal(pixels(first[0].location), pixels(second[0].location))


def test_job_that_runs_twice_keeps_one_set_of_images(stylus: Stylus) -> None:
    request = stylus.request("a blue circle", count=2, seed=3)
    first = stylus.generate(request, job_id="a-job")
    second = stylus.generate(request, job_id="a-job")
    assert [image.id for image in first] == [image.id for image in second]
    assert len([image for image in stylus.history.recent_images(10) if image.job_id == "a-job"]) == 2


def test_cancelling_stops_and_the_next_generation_works(stylus: Stylus) -> None:
    request = stylus.request("a blue circle", seed=3)

    def cancel(progress: Progress) -> None:
        if progress.done >= 2:
            raise Cancelled("stopped by the test")

    with pytest.raises(Cancelled):
        stylus.generate(request, on_progress=cancel)
    assert stylus.history.recent_images(1) == []
    assert len(stylus.generate(request)) == 1


def test_caller_is_the_composer(stylus: Stylus) -> None:
    picks = [Pick(id="pocket:star", weight=0.5, task="star"), Pick(id="pocket:heart")]
    composition = stylus.compose("a star and a heart", picks=picks)
    assert composition.composer == "caller"
    assert (composition.choices[0].adapter_id, composition.choices[0].weight) == ("pocket:star", 0.5)
    assert composition.choices[1].weight == stylus.catalog.require(["pocket:heart"])[0].weight


@pytest.mark.parametrize(
    ("prompt", "picks", "error", "words"),
    [
        ("  \x00 ", None, InvalidInput, "empty"),
        ("x" * 100_000, None, InvalidInput, "100,000"),
        ("a star", [Pick(id="pocket:stra")], NotFound, "pocket:star"),
        ("a star", [Pick(id="pocket:star"), Pick(id="pocket:star")], InvalidInput, "more than once"),
        ("a star", [Pick(id=f"pocket:a{i}") for i in range(21)], InvalidInput, "at most 20"),
    ],
)
def test_bad_compositions_say_what_to_do(
    stylus: Stylus, prompt: str, picks: list[Pick] | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        stylus.compose(prompt, picks=picks)


def test_options_that_can_not_be_drawn_are_named(stylus: Stylus) -> None:
    composition = stylus.compose("a red star")
    for options, words in (
        ({"strength": 0.5}, "^strength says .* pass the image, or leave strength out\\.$"),
        ({"mask": "0" * 64}, "^a mask needs the image that it belongs to\\.$"),
        ({"count": 65, "steps": 0}, r"^count: .* 64 \(given: 65\); steps: .* 1 \(given: 0\)\.$"),
    ):
        with pytest.raises(InvalidInput, match=words):
            stylus.request(composition, **options)


def test_spaces_of_every_kind_part_words(stylus: Stylus) -> None:
    composition = stylus.compose("a red\u00a0star\ron a\u200b checker\u0007board\u3000background\r\n")
    assert composition.prompt == "a red star\non a checkerboard background"


def test_of_a_list_in_one_trigger_word_what_serves_the_prompt_joins_it(stylus: Stylus) -> None:
    adapter = Adapter(
        id="x:knight",
        name="Knight",
        trigger_words=("1girl, knight armour, helmet, sword",),
        base_model=stylus.settings.default_family,
    )
    stylus.catalog.add([adapter])
    [choice] = stylus.compose("a knight in armour", picks=[Pick(id="x:knight")]).choices
    assert choice.trigger_words == ("knight armour",)


def test_adapter_of_another_base_model_is_refused(stylus: Stylus) -> None:
    (other,) = stylus.search("anything", filters=Filters(base_model=BaseModelFamily.SD15), limit=1)
    with pytest.raises(InvalidInput, match="was made for sd15, not for pocket"):
        stylus.compose("a star", picks=[Pick(id=other.adapter.id)])


def test_search_limits(stylus: Stylus) -> None:
    assert len(stylus.search("star", limit=150, filters=Filters())) > 20
    for limit in (0, 10_001):
        with pytest.raises(InvalidInput, match="limit"):
            stylus.search("star", limit=limit)


def test_image_ids_are_stable_for_jobs_and_fresh_otherwise() -> None:
    assert image_id("job", 0) == image_id("job", 0) != image_id("job", 1)
    assert image_id(None, 0) != image_id(None, 0)
