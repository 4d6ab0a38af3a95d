"""Adapters of a hub repository: its README card (YAML front matter as the hub documents it for LoRA: base_model,
instance_prompt, tags, license, widget with output pictures) and its safetensors files, by the hub's REST API.

HF_ENDPOINT names another hub than the public one, HF_TOKEN opens private and gated repositories (both are read by
huggingface_hub). No weights come with it. Everything in the answers is text from strangers.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import yaml  # type: ignore[import-untyped]
from huggingface_hub import constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils._validators import validate_repo_id
from pydantic import SecretStr

from stylus.base_models import family_by_name
from stylus.errors import InvalidInput, NotFound, SourceUnavailable
from stylus.records import BaseModelFamily, Card, Example, Rating
from stylus.sources.sidecar import MOST_EXAMPLES, category_of, words
from stylus.text import clean, clean_line
from stylus.web import Web

_MOST_README = 2**18
_MOST_FILES = 50
"""Cards of one repository: some keep a file for every hundred steps of their training."""
_MAIN = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""What diffusers and peft call the file."""
_WHOLE_MODELS = re.compile(
    r"(?:^|/)(?:diffusion_pytorch_)?model(?:[._](?:fp16|bf16|fp32|ema|non_ema))*\.safetensors$|-\d{5}-of-\d{5}\.safetensors$"
)
_EXPANDING = re.compile(r"<<|!!|!<")
"""YAML's merging of mappings and what names it: a few lines of it grow beyond any memory."""
_PICTURE = re.compile(r"\.(?:png|jpe?g|webp)$", re.IGNORECASE)
_PLAIN_TAGS = {"text-to-image", "image-to-image", "diffusers", "diffusers-training", "lora", "stable-diffusion", "peft"}
"""They say what every adapter is."""


def open_web(endpoint: str | None = None, sleep: Callable[[float], None] = time.sleep) -> Web:
    """The hub at `endpoint`, by default at HF_ENDPOINT."""
    token = get_token()
    return Web(
        "The hub",
        endpoint or constants.ENDPOINT,
        token=SecretStr(token) if token else None,
        remedy="A gated repository asks to accept its terms on its page, and for a token: set HF_TOKEN.",
        sleep=sleep,
    )


def cards(repository: str, web: Web) -> Iterator[Card]:
    """A card for each adapter file of OWNER/NAME (or its URL), the main one first; all share a group.

    Raises InvalidInput for a name of the wrong form, NotFound when there is no such repository or no safetensors file
    in it, SourceUnavailable.
    """
    name = repository.strip().removeprefix(web.url("/")).removeprefix("hub:").strip("/")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InvalidInput(f"{repository[:200]!r} is no repository of the hub: write OWNER/NAME.") from error
    answer = web.json(f"/api/models/{name}", {"blobs": "true"})
    try:
        info = ModelInfo(**answer)  # type: ignore[no-untyped-call]
        files = sorted(
            _adapter_files(info.siblings or []), key=lambda file: (file.rfilename not in _MAIN, file.rfilename)
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise SourceUnavailable(f"The hub's answer about {name} can't be read ({type(error).__name__}).") from error
    if not files:
        raise NotFound(f"{name} has no safetensors file of an adapter (pickle files and whole models are not read).")
    # A commit, not a branch: what is downloaded later is what the card describes.
    place = f"/{name}/resolve/{quote(info.sha or 'main', safe='')}/"
    said, text = _readme(web, place, {file.rfilename for file in info.siblings or []})
    for n, file in enumerate(files[:_MOST_FILES]):
        yield _card(name, file, said, text, web.url(place), main=n == 0)


def _adapter_files(siblings: list[RepoSibling]) -> list[RepoSibling]:
    """The safetensors files that are no part of a whole model: those at the top, else all."""
    files = [s for s in siblings if s.rfilename.endswith(".safetensors") and not _WHOLE_MODELS.search(s.rfilename)]
    return [file for file in files if "/" not in file.rfilename] or files


def _readme(web: Web, place: str, names: set[str]) -> tuple[Mapping[str, Any], str]:
    """The front matter and the text of the README; empty where there is none, or none that may be read."""
    if "README.md" not in names:
        return {}, ""

    def read() -> bytes:
        content = b""
        with web.stream(web.url(place) + "README.md") as response:
            for piece in response.iter_bytes():
                content += piece
                if len(content) >= _MOST_README:
                    break
        return content[:_MOST_README]

    text = web.retry(read).decode("utf-8", errors="replace").replace("\0", "")
    block = REGEX_YAML_BLOCK.search(text)
    if block is None:
        return {}, text
    try:
        said = {} if _EXPANDING.search(block[2]) else yaml.safe_load(block[2])
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        said = {}
    return said if isinstance(said, dict) else {}, text[block.end() :]


def _card(name: str, file: RepoSibling, said: Mapping[str, Any], text: str, place: str, *, main: bool) -> Card:
    tags = tuple(tag for tag in words(said.get("tags")) if tag not in _PLAIN_TAGS and ":" not in tag)
    owner, _, title = name.rpartition("/")
    file_title = file.rfilename.removesuffix(".safetensors")
    mature = {"not-for-all-audiences", "nsfw"} & {tag.lower() for tag in tags}
    return Card(
        id=f"hub:{name}" if main else f"hub:{name}/{re.sub(r'[^!-~]+', '-', file_title)}"[:200],
        name=clean_line(re.sub(r"[-_]+", " ", title if main else f"{title} {file_title}"), 200) or name,
        description=clean(text, 20_000),
        tags=tags,
        trigger_words=words(said.get("instance_prompt")),
        base_model=_family(said.get("base_model")),
        category=category_of(tags),
        rating=Rating.MATURE if mature else Rating.GENERAL,
        examples=tuple(_examples(said.get("widget"), place))[:MOST_EXAMPLES],
        author=owner or None,
        licence=clean_line(said.get("license_name") or said.get("license"), 200) or None,
        url=place.partition("/resolve/")[0],
        sha256=file.lfs.sha256.lower() if file.lfs else None,
        bytes=file.size,
        # without a checksum (a file that is not kept as LFS) there is nothing to verify the weights with
        download=place + quote(file.rfilename) if file.lfs else None,
        group=f"hub:{name}",
    )


def _family(base_model: object) -> BaseModelFamily | None:
    names = base_model if isinstance(base_model, list) else [base_model]
    return next((family for name in names if (family := family_by_name(clean_line(name, 200)))), None)


def _examples(widget: object, place: str) -> Iterator[Example]:
    """Pictures that lie in the repository, with the prompts they were made with."""
    for entry in widget if isinstance(widget, list) else []:
        output = entry.get("output") if isinstance(entry, dict) else None
        address = output.get("url") if isinstance(output, dict) else None
        if not isinstance(address, str) or not _PICTURE.search(address):
            continue
        path = address.removeprefix(place)
        if "://" not in path and ".." not in path.split("/"):
            prompt = clean_line(entry.get("text"), 2000)
            yield Example(
                image=place + quote(path.removeprefix("./").lstrip("/")), prompt="" if prompt == "-" else prompt
            )
