"""The one reader of the environment (variables `STYLUS_*`, all optional): read once, then passed on frozen."""

import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

import platformdirs
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stylus.errors import SettingsError
from stylus.records import BaseModelFamily, ContentFilter


class Settings(BaseSettings):
    """Each field is the variable STYLUS_<FIELD>; an empty one, as in a compose file, is as good as unset. With nothing
    set, everything runs on what the package brings."""

    model_config = SettingsConfigDict(
        env_prefix="STYLUS_", env_ignore_empty=True, frozen=True, extra="ignore", hide_input_in_errors=True
    )

    database_url: SecretStr | None = Field(None, description="Postgres with pgvector; unset: an embedded one")
    data: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("stylus", appauthor=False)),
        description="folder for the embedded database, downloads and images",
    )
    store: str | None = Field(None, description="fsspec URL of the image store; unset: <data>/images")
    embedder: str | None = Field(None, description="pydantic-ai embedding model; unset: all-MiniLM-L6-v2, shipped")
    composer: str = Field("lexical", description="`lexical`, or pydantic-ai models, separated by commas")
    reranker: str | None = Field(
        None, description="cross-encoder `sentence-transformers:FOLDER_OR_HUB_ID`, or a pydantic-ai model; unset: none"
    )
    vision: str | None = Field(None, description="pydantic-ai model of the refiner; unset: cards as they are")
    checkpoints: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        description="`sd15=PATH_OR_HUB_ID,sd15:NAME=FILE.safetensors@CONFIG,sdxl=...`; `pocket` is always there",
    )
    checkpoints_kept: int = Field(2, ge=1, description="checkpoints in memory; the least recently used is unloaded")
    device: str | None = Field(None, description="torch device; unset: cuda, mps or cpu, the first there is")
    dtype: str | None = Field(
        None, description="float32, float16 or bfloat16; unset: float32 on cpu, else float16 (flux: bfloat16)"
    )
    offload: bool = Field(False, description="keep only the model at work on the GPU (accelerate's CPU offload)")
    vae_tiling: bool = Field(False, description="decode large pictures in tiles: less memory, faint seams")
    compile: bool = Field(False, description="torch.compile the denoiser: minutes at the first picture, faster after")
    adapter_cache_gb: float = Field(
        2.0, gt=0, le=1e6, description="adapters kept on the device, and as much in main memory"
    )
    keep_days: float | None = Field(None, gt=0, le=1e6, description="older pictures are deleted; unset: none")
    keep_gb: float | None = Field(
        None, gt=0, le=1e6, description="the oldest pictures on top of so many GB are deleted"
    )
    content_filter: ContentFilter = Field(
        ContentFilter.OFF, description="off, flag or block pictures made with adapters rated mature"
    )
    tokens: SecretStr | None = Field(None, description="bearer tokens for HTTP, separated by commas")
    url: str | None = Field(
        None, description="URL of /mcp as clients know it, behind a proxy; unset: the address that is bound"
    )
    oauth_issuer: str | None = Field(None, description="authorization server whose tokens (JWT) are taken over HTTP")
    oauth_jwks: str | None = Field(None, description="URL of its keys; unset: as its metadata says")
    audit: str = Field("off", description="the server's audit log: off, stderr or a file")
    audit_prompts: bool = Field(False, description="the audit log also holds prompts")
    otlp_endpoint: str | None = Field(
        None,
        validation_alias=AliasChoices(
            "otlp_endpoint", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
        ),
        description="where spans go; this and the other OTEL_* variables are OpenTelemetry's own",
    )
    civitai_key: SecretStr | None = Field(None, description="API key of Civitai: many downloads ask for one")
    civitai_url: str = Field("https://civitai.com", description="Civitai, or a mirror of it")

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, value: SecretStr | None) -> SecretStr | None:
        """No message quotes it: a password may be anywhere in it, and a bare @ or / puts one into host or database."""
        if value is not None:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict

            try:
                parts = conninfo_to_dict(text := value.get_secret_value())
                torn = "://" in text and "@" in f"{str(parts.get('host', ''))[1:]}{parts.get('dbname')}"
            except psycopg.ProgrammingError:
                torn = True
            if torn:
                raise ValueError(
                    "not an address of Postgres, as postgresql://USER@HOST/DATABASE; "
                    "in a password, write @ as %40, / as %2F and % as %25"
                )
        return value

    @field_validator("data")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        """~ comes as it stands from the configuration of an MCP client, where no shell reads it."""
        try:
            return value.expanduser().absolute()
        except RuntimeError as error:
            raise ValueError(f"{str(value)!r} is in no home folder that is known here: write the whole path") from error

    @field_validator("audit")
    @classmethod
    def _file(cls, value: str) -> str:
        return value if value in ("off", "stderr") else str(cls._absolute(Path(value)))

    @field_validator("embedder", "reranker")
    @classmethod
    def _in_home(cls, value: str | None) -> str | None:
        return value and value.replace(":~/", f":{Path.home()}/")

    @field_validator("checkpoints", mode="before")
    @classmethod
    def _parse_checkpoints(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if any(not separator for _, separator, _ in pairs):
            raise ValueError(f"{value!r} is not of the form family=path,family=path")
        return {family.strip(): path.strip() for family, _, path in pairs}

    @field_validator("checkpoints")
    @classmethod
    def _known_families(cls, value: dict[str, str]) -> dict[str, str]:
        for key in value:
            family, separator, name = key.partition(":")
            if family not in set(BaseModelFamily) or (separator and not re.fullmatch(r"[\w.-]+", name)):
                known = ", ".join(BaseModelFamily)
                raise ValueError(f"{key!r} is not FAMILY or FAMILY:NAME; families are {known}")
        return value

    @field_validator("url", "oauth_issuer", "oauth_jwks")
    @classmethod
    def _https(cls, value: str | None) -> str | None:
        """As text: an issuer is compared character by character."""
        if value is not None:
            parts = urlsplit(value)
            loopback = parts.hostname in ("127.0.0.1", "localhost", "::1")
            if not parts.hostname or (parts.scheme != "https" and not (parts.scheme == "http" and loopback)):
                raise ValueError(f"{value!r} is not an https:// URL")
        return value

    @classmethod
    def read(cls) -> Self:
        """The settings of this process. Raises SettingsError that names the variable and what it may hold."""
        try:
            return cls()
        except ValidationError as error:
            problems = [f"STYLUS_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()]
            raise SettingsError("; ".join(problems) + ". Mend or unset the variable.") from error

    @property
    def store_url(self) -> str:
        return self.store or str(self.data / "images")

    @property
    def default_family(self) -> BaseModelFamily:
        """The family to compose for when the caller names none: the first configured checkpoint's, else pocket."""
        return BaseModelFamily(next(iter(self.checkpoints), "pocket").partition(":")[0])
