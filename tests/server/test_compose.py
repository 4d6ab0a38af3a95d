"""The compose file names only what there is. Docker itself was not there to run it."""

import json

import yaml  # type: ignore[import-untyped]
from typer.testing import CliRunner

from stylus.cli import app
from tests.server.test_examples import PROJECT, ROOT, known


def test_compose_names_only_what_there_is() -> None:
    content = yaml.safe_load((ROOT / "examples/compose.yaml").read_text())
    services = content["services"]
    assert set(services) == {"postgres", "server", "worker"}
    assert services["worker"]["deploy"]["replicas"] == 2
    volumes = {volume.partition(":")[0] for service in services.values() for volume in service["volumes"]}
    assert volumes == set(content["volumes"])
    for name in ("server", "worker"):
        service = services[name]
        assert service["depends_on"] == {"postgres": {"condition": "service_healthy"}}
        assert (ROOT / "examples" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert known(set(service["environment"]))
        command, *options = service["command"]
        help = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert help.exit_code == 0
        assert all(option in help.output for option in options if option.startswith("--"))
    assert "healthcheck" in services["postgres"]
    *_, check = services["server"]["healthcheck"]["test"]
    compile(check, "healthcheck", "exec")
    for name in ("STYLUS_STORE", "STYLUS_DATABASE_URL"):
        assert services["server"]["environment"][name] == services["worker"]["environment"][name]


def test_the_dockerfile_copies_what_there_is() -> None:
    lines = (ROOT / "examples/Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    assert lines[-1] == f"ENTRYPOINT [{json.dumps(next(iter(PROJECT['scripts'])))}]"
