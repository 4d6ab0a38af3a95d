"""As whom the embedded Postgres runs: as ourselves or, since Postgres refuses to run as root, as a user id of its own.

A user id that no account has keeps the files from every other user, and needs no change to the system's accounts. Only
initdb insists on a name for its user id, so it runs as `nobody`, and its files change hands afterwards.
"""

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylus.errors import DatabaseUnavailable

_OWN_ID = 60_999
"""In the range 60578-61183 that distributions leave unused."""


@dataclass(frozen=True)
class Account:
    uid: int
    gid: int
    switch: bool
    """True when this process is root and its children must become somebody else."""

    @classmethod
    def current(cls) -> "Account":
        """The account for this process. Raises DatabaseUnavailable where root can't become anybody else."""
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid(), switch=False)
        # In a user namespace with few ids only accounts that exist can be taken.
        for uid, gid in ((_OWN_ID, _OWN_ID), _nobody()):
            account = cls(uid, gid, switch=True)
            if account.can_enter(Path("/")):
                return account
        raise DatabaseUnavailable(
            "Postgres does not run as root, and this process may not start it as another user. Run Stylus as an "
            "ordinary user, or set STYLUS_DATABASE_URL to a Postgres of yours."
        )

    def run(self, command: Sequence[str], timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs a program as this account, in / and without the PG* variables of the caller, in plain English."""
        return self._run(command, self.uid, self.gid, timeout)

    def initdb(self, command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """Runs initdb on `folder`, which belongs to this account afterwards."""
        if not self.switch:
            return self.run(command, timeout=300.0)
        uid, gid = _nobody()
        os.chown(folder, uid, gid)
        done = self._run(command, uid, gid, timeout=300.0)
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)
        return done

    def own(self, folder: Path) -> None:
        """Gives a folder that we made to the account."""
        if self.switch and folder.lstat().st_uid == 0 and not folder.is_symlink():
            os.chown(folder, self.uid, self.gid)

    def can_enter(self, folder: Path) -> bool:
        """Tried for real, so that access lists and mount options count too."""
        return self._succeeds(["/bin/sh", "-c", 'cd "$1"', "sh", str(folder)])

    def can_run(self, program: Path) -> bool:
        return self._succeeds([str(program), "--version"])

    def _succeeds(self, command: Sequence[str]) -> bool:
        if not self.switch:
            return True
        try:
            return self.run(command).returncode == 0
        except (OSError, subprocess.SubprocessError):
            return False

    def _run(self, command: Sequence[str], uid: int, gid: int, timeout: float) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        options: dict[str, Any] = {"user": uid, "group": gid, "extra_groups": []} if self.switch else {}
        return subprocess.run(  # noqa: S603 (programs and arguments are ours)
            command,
            env={**environment, "LC_ALL": "C"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            **options,
        )


def _nobody() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return 65_534, 65_534
    return entry.pw_uid, entry.pw_gid
