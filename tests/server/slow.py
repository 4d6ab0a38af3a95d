"""`python -m tests.server.slow SECONDS [PORT | worker]`: the real server with a renderer that needs no torch and takes
its time; on stdio, on an HTTP port of loopback, or a worker alone, whose silence is noticed sooner there.

For what is about the process and not about pictures: signals, waiting, a database that goes away. SECONDS is how long a
call waits for its images. A picture takes a twentieth of a second a step.
"""

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from server.app import run
from server.backend import Backend
from server.results import ImageResponses
from stylus.pictures import image_id
from stylus.records import ImageRecord, OnProgress, Progress, Request
from stylus.settings import Settings
from stylus.stylus import Stylus
from stylus.telemetry import exported
from stylus.worker import Worker


def draw(self: Stylus, what: Request, *, on_progress: OnProgress, job_id: str) -> list[ImageRecord]:
    steps = what.steps or 1
    for step in range(steps):
        on_progress(Progress(stage="generating", done=step, total=steps))
        time.sleep(0.05)
    return list(self.history.save_images([_picture(self, what, job_id, index) for index in range(what.count)]))


def _picture(stylus: Stylus, what: Request, job_id: str, index: int) -> ImageRecord:
    id = image_id(job_id, index)
    path = Path(stylus.settings.store_url) / f"{id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (what.seed % 256, index, 0)).save(path)
    fields: dict[str, Any] = {"width": 64, "height": 64, "adapters": {}, "created_at": datetime.now(UTC)}
    made = {"prompt": what.composition.prompt, "seed": what.seed + index, "job_id": job_id}
    return ImageRecord(id=id, uri=f"stylus://images/{id}", location=str(path), index=index, **made, **fields)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("wait", type=float)
    parser.add_argument("how", nargs="?", default="stdio")
    parser.add_argument("--image-responses", type=ImageResponses, default=ImageResponses.THUMBNAIL)
    parser.add_argument("--warm", action="store_true", help="open the database at the start, as the real one does")
    options = parser.parse_args()
    settings = Settings.read()
    Stylus.generate = draw  # type: ignore[method-assign, assignment]
    if not options.warm:
        Backend.open_soon = lambda self: None  # type: ignore[method-assign]
    if options.how != "stdio":
        Worker.__init__.__kwdefaults__ = {"heartbeat": 0.5, "stalled": 4.0}
    if options.how == "worker":
        with exported(settings), Stylus(settings) as stylus:
            Worker(stylus).run()
    elif options.how == "stdio":
        run(settings, wait=options.wait, shown=options.image_responses)
    else:
        run(settings, http=True, port=int(options.how), wait=options.wait, shown=options.image_responses)
