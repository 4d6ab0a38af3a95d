"""The trained pipeline that the package brings draws what the prompt says, with nothing configured."""

from pathlib import Path

import numpy as np

from stylus.generation.checkpoints import Checkpoints
from stylus.generation.generator import Generator
from stylus.records import BaseModelFamily, Request
from stylus.settings import Settings
from tests.generation import tiny


def test_a_red_circle_on_blue(tmp_path: Path) -> None:
    composition = tiny.composition(prompt="a red circle on a blue background").model_copy(
        update={"base_model": BaseModelFamily.POCKET}
    )
    generator = Generator(Checkpoints(Settings(data=tmp_path, device="cpu")))
    images = generator.render(Request(composition=composition, count=2, seed=1), {})
    for rendered in images:
        pixels = np.asarray(rendered.image, dtype=float)
        assert pixels.shape == (64, 64, 3)
        centre, corner = pixels[28:36, 28:36].mean(axis=(0, 1)), pixels[:4, :4].mean(axis=(0, 1))
        assert centre.argmax() == 0
        assert centre[0] > 1.5 * centre[2]
        assert corner.argmax() == 2
        assert corner[2] > 1.5 * corner[0]
    assert images[0].image.tobytes() != images[1].image.tobytes()
    assert images[0].provenance["checkpoint"]["name"] == "pocket"
