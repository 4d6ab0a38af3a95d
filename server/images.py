"""Pictures in and out over HTTP, and by the arguments of tools: never by a path or a URL that a caller names."""

import base64
import binascii
import re
from pathlib import Path

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from server import results
from server.auth import Door
from server.backend import Backend
from stylus.errors import Busy, DatabaseUnavailable, InvalidInput, NotFound, StylusError
from stylus.stylus import Stylus

MOST_BYTES = 20_000_000
"""Of an uploaded file."""
_KEPT = re.compile("[0-9a-f]{64}")
_MADE = re.compile("[A-Za-z0-9_-]{16,40}")


def input_id(stylus: Stylus, given: str, owner: str, *, mask: bool = False) -> str:
    """The id in the image store of a picture given as base64, as the id of an upload, or as that of a generated image.

    Raises InvalidInput, and NotFound for what is not the owner's."""
    keep = stylus.pictures.keep_mask if mask else stylus.pictures.keep_image
    if _KEPT.fullmatch(given):
        stylus.history.require_picture(given, owner)
        return given
    if _MADE.fullmatch(given.removeprefix("stylus://images/")):
        return keep(results.read_image(stylus.history.image(given.removeprefix("stylus://images/"), owner)), owner)
    try:
        data = base64.b64decode(re.sub(r"^data:image/[a-z+]+;base64,", "", given), validate=True)
    except binascii.Error as error:
        raise InvalidInput(
            f"{'mask' if mask else 'image'} is neither base64 of a picture file nor the id of an image ({error}). Pass "
            "the content of a PNG, JPEG or WebP as base64, or an id from POST /images or from generate_image."
        ) from error
    return keep(data, owner)


class Images:
    """The routes `POST /images`, whose body is a picture file (`?mask=1`: a mask), and `GET /images/{id}`."""

    def __init__(self, backend: Backend, door: Door) -> None:
        self._backend, self._door = backend, door

    async def upload(self, request: Request) -> Response:
        owner = self._door.admit(request, "generate")
        data = b""
        async for part in request.stream():
            data += part
            if len(data) > MOST_BYTES:
                return JSONResponse({"error": f"At most {MOST_BYTES:,} bytes are taken."}, status_code=413)

        def keep() -> str:
            stylus = self._backend.stylus
            mask = request.query_params.get("mask", "").lower() in ("1", "true", "yes")
            keep_it = stylus.pictures.keep_mask if mask else stylus.pictures.keep_image
            return keep_it(data, owner)

        try:
            return JSONResponse({"id": await anyio.to_thread.run_sync(keep)}, status_code=201)
        except StylusError as error:
            return told(error)

    async def download(self, request: Request) -> Response:
        owner = self._door.admit(request, "read")

        def find() -> Response:
            image = self._backend.stylus.history.image(request.path_params["id"], owner)
            if "://" in image.location:  # the store is remote: the file passes through whole
                return Response(results.read_image(image), media_type="image/png")
            if not Path(image.location).is_file():
                raise NotFound(f"The file of image {image.id} is gone. Repeat seed {image.seed} to draw it again.")
            return FileResponse(image.location, media_type="image/png", headers={"Cache-Control": "private, immutable"})

        try:
            return await anyio.to_thread.run_sync(find)
        except StylusError as error:
            return told(error)


def told(error: StylusError) -> Response:
    """An error as its caller's client gets it."""
    status = {InvalidInput: 400, NotFound: 404, Busy: 429, DatabaseUnavailable: 503}.get(type(error), 500)
    return JSONResponse({"error": str(error)}, status_code=status)
