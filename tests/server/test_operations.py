"""What whoever runs the server for others needs: OAuth beside its own tokens, the audit log, numbers for Prometheus."""

import asyncio
import base64
import hmac
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import httpx2
import mcp_types as types
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from mcp import Client
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from prometheus_client.parser import text_string_to_metric_families

from server.audit import Audit, ids_answered
from server.backend import Backend
from server.metrics import Queue
from server.oauth import Issuer
from stylus.database import Database
from stylus.errors import NotFound, SettingsError
from stylus.records import JobStatus
from stylus.settings import Settings
from stylus.tokens import Tokens
from tests.server import world
from tests.server.authorization import AuthorizationServer
from tests.server.conftest import PATIENCE, _until_it_answers, filled_database, free_port
from tests.server.test_http import ACCEPT, PING
from tests.server.test_security import STAR, Served, image_id
from tests.test_jobs import request, until

PROMPT = "a star that nobody shall read about"


@pytest.fixture(scope="module")
def authority() -> Iterator[AuthorizationServer]:
    with AuthorizationServer() as server:
        yield server


@pytest.fixture(scope="module")
def served(
    postgres: Any,
    template: str,
    embedder: Any,
    tmp_path_factory: pytest.TempPathFactory,
    authority: AuthorizationServer,
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("operations")
    with filled_database(postgres, template, [], embedder) as url:
        with Database(url) as database:
            tokens = Tokens(database)
            known = {"carl": tokens.add("carl", ["read"]), "prometheus": tokens.add("prometheus", ["metrics"])}
        port, log = free_port(), folder / "log"
        known |= {"dora": "token-of-dora", "anna": token_for(authority, port)}
        environment = world.environment(url, folder, folder) | {
            "STYLUS_TOKENS": "token-of-dora",
            "STYLUS_OAUTH_ISSUER": authority.issuer,
            "STYLUS_AUDIT": str(folder / "audit.jsonl"),
        }
        command = [sys.executable, "-m", "tests.server.slow", "40", str(port)]
        with log.open("wb") as errors, subprocess.Popen(command, env=environment, stderr=errors) as process:
            origin = f"http://127.0.0.1:{port}"
            try:
                _until_it_answers(process, origin)
                yield Served(origin, log, known)
            finally:
                process.terminate()
                process.wait(20)


def token_for(authority: AuthorizationServer, port: int, **claims: Any) -> str:
    return authority.token(**{"aud": f"http://127.0.0.1:{port}/mcp", **claims})


def audience(served: Served) -> str:
    return f"{served.origin}/mcp"


def knock(served: Served, token: str | None) -> httpx.Response:
    headers = ACCEPT if token is None else ACCEPT | {"Authorization": f"Bearer {token}"}
    return httpx.post(f"{served.origin}/mcp", json=PING, headers=headers, timeout=PATIENCE)


def test_a_client_without_a_token_is_told_where_to_get_one(served: Served, authority: AuthorizationServer) -> None:
    for refused in (knock(served, None), httpx.get(f"{served.origin}/images/x")):
        assert refused.status_code == 401
        assert "Bearer" in refused.headers["WWW-Authenticate"]
        where = refused.headers["WWW-Authenticate"].partition('resource_metadata="')[2].partition('"')[0]
        metadata = httpx.get(where).json()
        assert metadata["resource"] == audience(served)
        assert metadata["authorization_servers"] == [authority.issuer]
        assert set(metadata["scopes_supported"]) == {"read", "generate", "metrics"}


class NoStorage:
    async def get_tokens(self) -> OAuthToken | None:
        return None

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Not kept."""

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Not kept."""


def test_the_sdks_client_finds_its_way_to_a_token_and_a_picture(served: Served, authority: AuthorizationServer) -> None:
    async def draw() -> bool:
        flow = ClientCredentialsOAuthProvider(
            audience(served), NoStorage(), "robot", "its secret", issuer=authority.issuer
        )
        async with (
            httpx2.AsyncClient(auth=flow, timeout=PATIENCE) as http,
            Client(streamable_http_client(audience(served), http_client=http), cache=None) as client,
        ):
            return (await client.call_tool("generate_image", STAR)).is_error

    assert asyncio.run(draw()) is False
    assert "/token" in authority.asked


def test_a_token_of_the_authorization_server_is_its_subject(served: Served, authority: AuthorizationServer) -> None:
    annas = served.made("anna")
    served.tokens |= {
        "anna again": authority.token(aud=[audience(served), "https://other.example"], key=authority.ec,
                                      algorithm="ES256", kid="ec", scope=None, scp=["read"]),
        "bert": authority.token(aud=audience(served), sub="bert"),
    }  # fmt: skip
    assert served.call("anna again", "job", id=annas["job_id"])[0] is False
    for other in ("bert", "dora"):
        failed, text = served.call(other, "job", id=annas["job_id"])
        assert failed
        assert "No job" in text


def forged(authority: AuthorizationServer) -> dict[str, dict[str, Any]]:
    """What is wrong with a token -> how it is made."""
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return {
        "made for another server": {"aud": "https://other.example/mcp"},
        "made for nobody": {"aud": None},
        "expired": {"exp": int(time.time()) - 1},
        "without end": {"exp": None},
        "not valid yet": {"nbf": int(time.time()) + 300},
        "of another issuer": {"iss": "https://evil.example"},
        "of no issuer": {"iss": None},
        "about nobody": {"sub": None},
        "signed by a stranger": {"key": stranger},
        "signed by a stranger with a key of his own": {"key": stranger, "kid": "stranger"},
        "without a key's name": {"kid": None},
        "not signed": {"key": "", "algorithm": "none"},
        "with one key's name and another's kind": {"key": authority.ec, "algorithm": "ES256"},
    }


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_forged_tokens_are_refused(served: Served, authority: AuthorizationServer) -> None:
    assert knock(served, authority.token(aud=audience(served))).status_code == 200
    for what, how in forged(authority).items():
        answer = knock(served, authority.token(**{"aud": audience(served), **how}))
        assert answer.status_code == 401, what
        assert "invalid_token" in answer.headers["WWW-Authenticate"]
    head, body, signature = authority.token(aud=audience(served)).split(".")
    public = authority.rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    unsigned = encoded(b'{"alg": "HS256", "kid": "rsa"}') + f".{body}"
    mac = encoded(hmac.digest(public, unsigned.encode(), "sha256"))
    for broken in (
        f"{unsigned}.{mac}",  # with the public key as the secret of a MAC
        f"{head}.{body}.",
        f"{head}.{body}.{signature[:-6]}AAAAAA",
        encoded(b"[" * 20_000) + ".b.c",
        "a.b.c",
        "..",
    ):
        assert knock(served, broken).status_code == 401


def test_scopes_are_what_a_token_may_do(served: Served, authority: AuthorizationServer) -> None:
    refused = knock(served, authority.token(aud=audience(served), scope="generate"))
    assert refused.status_code == 403
    assert 'error="insufficient_scope"' in refused.headers["WWW-Authenticate"]
    served.tokens["reader"] = authority.token(aud=audience(served), sub="reader", scope="openid read")
    failed, text = served.call("reader", "generate_image", **STAR)
    assert failed
    assert "no scope 'generate'" in text
    with served.http("reader") as client:
        refused = client.post("/images", content=b"x")
    assert refused.status_code == 403
    assert 'scope="generate"' in refused.headers["WWW-Authenticate"]


def test_an_issuer_that_is_away_refuses_and_is_not_asked_for_each_token(authority: AuthorizationServer) -> None:
    token = authority.token(aud="https://stylus.example/mcp")
    with AuthorizationServer() as other:
        impostor = Issuer(f"{other.issuer}/tenant", "https://stylus.example/mcp")
        assert impostor.verify(token) is None
        asked = len(other.asked)
        assert asked == 3  # every place where metadata may be
        assert impostor.verify(token) is None
        assert len(other.asked) == asked
    known = Issuer(authority.issuer, "https://stylus.example/mcp", f"{authority.issuer}/jwks")
    found = known.verify(token)
    assert found is not None
    assert (found.subject, found.scopes) == ("anna", ["read", "generate"])


@pytest.mark.parametrize("url", ["http://auth.example", "file:///etc/passwd", "auth.example", ""])
def test_only_https_is_spoken_with_an_issuer(url: str) -> None:
    with pytest.raises(ValueError, match="https"):
        Settings.model_validate({"oauth_issuer": url})


def scraped(served: Served, who: str | None) -> tuple[int, str]:
    with served.http(who) as client:
        answer = client.get("/metrics")
    return answer.status_code, answer.text


def values(text: str) -> dict[tuple[str, str], float]:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, ",".join(sample.labels.values())): sample.value for sample in samples}


def test_metrics_count_the_queue_its_workers_and_the_calls_and_tell_nothing_else(served: Served) -> None:
    before = values(scraped(served, "prometheus")[1])
    made = served.made("dora", prompt=PROMPT, count=2)
    assert served.call("dora", "no_such_tool")[0]
    assert served.call("dora", "job", id="nope")[0]
    status, text = scraped(served, "prometheus")
    assert status == 200
    after = values(text)

    def more(name: str, labels: str = "") -> float:
        return after[name, labels] - before.get((name, labels), 0.0)

    assert after["stylus_database_up", ""] == 1
    assert more("stylus_jobs_finished_total", "done") == 1
    assert more("stylus_images_total") == 2
    assert after["stylus_jobs", "queued"] == after["stylus_jobs", "running"] == 0
    assert more("stylus_requests_total", "generate_image,ok") == 1
    assert more("stylus_requests_total", "unknown tool,error") == 1
    assert more("stylus_requests_total", "job,error") == 1
    assert more("stylus_stage_seconds_count", "compose") == more("stylus_stage_seconds_count", "job") == 1
    seen = [at for (name, _), at in after.items() if name == "stylus_worker_last_seen_timestamp_seconds"]
    assert seen
    assert max(seen) > time.time() - 60
    assert after["process_resident_memory_bytes", ""] > 0
    for secret in (*served.tokens.values(), *served.tokens, PROMPT, made["job_id"], image_id(made)):
        assert secret not in text.replace('call="GET /images/{id}"', "")


def test_metrics_are_for_those_who_may_see_them(served: Served) -> None:
    assert scraped(served, None)[0] == 401
    assert scraped(served, "carl")[0] == 403
    assert scraped(served, "dora")[0] == 200
    assert knock(served, served.tokens["prometheus"]).status_code == 403


def test_metrics_without_a_database_say_so(tmp_path: Path) -> None:
    settings = Settings.model_validate({"database_url": "postgresql://127.0.0.1:1/none", "data": tmp_path})
    [up] = Queue(Backend(settings)).collect()
    assert [(sample.name, sample.value) for sample in up.samples] == [("stylus_database_up", 0.0)]


def test_a_server_without_a_worker_leaves_the_queue_to_others(settings: Settings) -> None:
    with closing(Backend(settings, works=False)) as backend:
        job = backend.jobs.submit(request())
        time.sleep(1)
        assert backend.jobs.get(job.id).status is JobStatus.QUEUED
        assert not backend.jobs.counts().workers


def lines(served: Served) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (served.log.parent / "audit.jsonl").read_text().splitlines()]


def answered(served: Served, began: int, count: int) -> list[dict[str, Any]]:
    """The lines after the first `began`, once `count` of them are of requests, which are written after their answer."""
    until(lambda: sum("status" in line for line in lines(served)[began:]) >= count)
    return lines(served)[began:]


def test_the_audit_log_has_a_line_for_each_call_and_no_secret(served: Served, authority: AuthorizationServer) -> None:
    began = len(lines(served))
    made = served.made("anna", prompt=PROMPT)
    served.call("dora", "job", id=made["job_id"])
    served.call("dora", "generate_image", prompt=PROMPT, size="huge")
    served.call("dora", PROMPT, **{PROMPT: PROMPT})
    assert served.refusal("anna", made["images"][0]["uri"]) is None
    with served.http("dora") as client:
        client.get(f"/images/{image_id(made)}")
        client.get("/health")
        client.request("BREW", f"/{PROMPT}")
    with served.http("wrong-token") as client:
        client.get(f"/images/{image_id(made)}")
    written = answered(served, began, 3)
    image, brewed, refused = (line for line in written if "status" in line)
    assert (served.log.parent / "audit.jsonl").stat().st_mode & 0o777 == 0o600

    generated, asked, invalid, unknown, read = [line for line in written if "arguments" in line]
    assert generated["caller"] == f"{authority.issuer}#anna"
    assert (generated["call"], generated["outcome"]) == ("generate_image", "ok")
    assert generated["arguments"] == ["adapters", "prompt", "seed"]
    assert (generated["job_id"], generated["images"]) == (made["job_id"], [image_id(made)])
    assert generated["seconds"] > 0
    assert asked["caller"].startswith("env:")
    assert (asked["error"], asked["job_id"]) == ("NotFound", made["job_id"])
    assert (invalid["outcome"], invalid["error"]) == ("error", "ValidationError")
    assert (unknown["call"], unknown["arguments"]) == ("unknown tool", [])
    assert read["uri"] == made["images"][0]["uri"]
    assert (image["call"], image["status"], image["caller"]) == ("GET /images/{id}", 404, asked["caller"])
    assert brewed["call"] == "other elsewhere"
    assert (refused["status"], refused["caller"]) == (401, "")
    everything = json.dumps(lines(served)) + served.log.read_text()
    assert PROMPT not in everything
    assert not any(token in everything for token in [*served.tokens.values(), "wrong-token"])


def test_prompts_are_written_down_only_on_demand(tmp_path: Path) -> None:
    for asked in (False, True):
        where = tmp_path / f"{asked}.jsonl"
        settings = Settings.model_validate({"audit": str(where), "audit_prompts": asked})
        with (
            closing(Audit(settings)) as audit,
            audit.call("search_adapters", "anna", {"query": f"{PROMPT}\n\u2028", "image": "base64"}),
        ):
            pass
        [line] = where.read_text().splitlines()
        assert (PROMPT in line) is asked
        assert "base64" not in line


def test_an_audit_log_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="STYLUS_AUDIT"):
        Audit(Settings.model_validate({"audit": str(tmp_path / "nowhere" / "audit.jsonl")}))


def test_errors_and_cancelled_calls_are_told_apart(tmp_path: Path) -> None:
    with closing(Audit(Settings.model_validate({"audit": str(tmp_path / "audit.jsonl")}))) as audit:
        with pytest.raises(NotFound), audit.call("job", "", {}):
            raise NotFound(PROMPT)
        with pytest.raises(asyncio.CancelledError), audit.call("job", "", {}):
            raise asyncio.CancelledError
    written = (tmp_path / "audit.jsonl").read_text()
    assert [json.loads(line)["outcome"] for line in written.splitlines()] == ["error", "cancelled"]
    assert PROMPT not in written


@pytest.mark.parametrize(
    ("texts", "ids"),
    [
        (['{"job_id": "j", "images": [{"uri": "stylus://images/i"}]}'], {"job_id": "j", "images": ["i"]}),
        (["plain words", "{}"], {}),
        (["[1]"], {}),
        ([], {}),
    ],
)
def test_an_answer_of_any_form_is_let_through(texts: list[str], ids: dict[str, Any]) -> None:
    result = types.CallToolResult(content=[types.TextContent(type="text", text=text) for text in texts])
    assert ids_answered(result) == ids
