"""A model of Civitai with one of its versions -> a card (developer.civitai.com: models, model-versions; the model
types as its source code has them). Any field may be missing or of another type than it should be."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stylus.base_models import family_by_name
from stylus.records import Card, Category, Example, Kind, Rating
from stylus.sources.civitai_ratings import is_mild, rating
from stylus.sources.sidecar import category_of, words
from stylus.text import clean, clean_line

KINDS = {"LORA": Kind.LORA, "LoCon": Kind.LOCON, "DoRA": Kind.DORA}
"""Civitai's model types that are adapters."""
_MOST_EXAMPLES = 20


def card(
    model: Mapping[str, Any],
    version: Mapping[str, Any],
    file: Mapping[str, Any],
    kind: Kind,
    *,
    first: bool,
    alone: bool,
    owns: Callable[[str], bool],
) -> Card:
    """The card of one file of a version. `first`: it is the version's main file; `alone`: its model has no other
    version; `owns` tells whether an address lies on Civitai's own hosts. Raises ValidationError."""
    group, tags = f"civitai:{model['id']}", words(model.get("tags"))
    rated = rating(model, version)
    name = [model.get("name"), *([] if alone else [version.get("name")]), *([] if first else [file.get("name")])]
    texts = [clean(text, 20_000) for text in (model.get("description"), version.get("description"))]
    size = file.get("sizeKB")
    size = size * 1024 if isinstance(size, int | float) and 0 <= size < 2**40 else 0.5
    digest = str(mapping(file.get("hashes")).get("SHA256")).lower()
    return Card(
        id=f"{group}@{version['id']}" + ("" if first else f".{file.get('id')}"),
        name=clean_line(" ".join(filter(None, (clean_line(part, 200) for part in name))), 200) or group,
        description="\n\n".join(text for text in texts if text)[:20_000],
        tags=tags,
        trigger_words=words(version.get("trainedWords")),
        base_model=family_by_name(clean_line(version.get("baseModel"), 100)),
        kind=kind,
        category=category_of(tags) or (Category.CELEBRITY if model.get("poi") is True else None),
        rating=rated,
        examples=tuple(_examples(version, rated)),
        author=clean_line(mapping(model.get("creator")).get("username"), 200) or None,
        licence=_licence(model),
        url=f"https://civitai.com/models/{model['id']}?modelVersionId={version['id']}",
        sha256=digest if re.fullmatch(r"[0-9a-f]{64}", digest) else None,
        bytes=int(size) if float(size).is_integer() else None,  # else it is a rounded figure
        download=_download(version, file, owns),
        group=group,
    )


def weight_files(version: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The safetensors files, the primary one first; other forms of the same weights keep their order."""
    files = [mapping(file) for file in as_list(version.get("files"))]
    usable = [
        file
        for file in files
        if file.get("type") in (None, "Model", "Pruned Model")
        and str(file.get("name")).lower().endswith(".safetensors")
    ]
    return sorted(usable, key=lambda file: file.get("primary") is not True)


def _examples(version: Mapping[str, Any], rated: Rating) -> Iterator[Example]:
    """Pictures with their prompts, of the card's own rating only."""
    images = [mapping(image) for image in as_list(version.get("images"))]
    shown = [
        image
        for image in images
        if image.get("type") in (None, "image")
        and _is_address(image.get("url"))
        and (rated is Rating.MATURE or is_mild(image.get("nsfwLevel")))
    ]
    for image in shown[:_MOST_EXAMPLES]:
        yield Example(image=image["url"], prompt=clean_line(mapping(image.get("meta")).get("prompt"), 2000))


def _download(version: Mapping[str, Any], file: Mapping[str, Any], owns: Callable[[str], bool]) -> str | None:
    """Where the weights are, if anyone may have them, and only on Civitai's own hosts."""
    address = file.get("downloadUrl")
    free = version.get("availability") != "EarlyAccess" and version.get("usageControl") in (None, "Download")
    clean_of_viruses = "Danger" not in (file.get("virusScanResult"), file.get("pickleScanResult"))
    return address if free and clean_of_viruses and isinstance(address, str) and owns(address) else None


def _licence(model: Mapping[str, Any]) -> str | None:
    """The author's permissions, in words."""
    commercial = model.get("allowCommercialUse")
    if commercial is None:
        return None
    uses = [commercial] if isinstance(commercial, str) else as_list(commercial)
    said = [f"commercial use: {', '.join(clean_line(str(use), 30) for use in uses) or 'None'}"]
    said += ["credit required"] if model.get("allowNoCredit") is False else []
    said += ["no derivatives"] if model.get("allowDerivatives") is False else []
    said += ["same terms"] if model.get("allowDifferentLicense") is False else []
    return clean_line("; ".join(said), 200)


def _is_address(url: object) -> bool:
    return isinstance(url, str) and len(url) <= 2000 and re.fullmatch(r"https://[!-~]+", url) is not None


def mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
