"""A PostgreSQL server for tests, from the system's package: made in a folder, on a Unix socket."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from support.patience import wait_until

USER = "postgres"


def found() -> Path | None:
    """The folder of the server's programs, the newest that is installed."""
    known = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_number)
    if known:
        return known[-1].parent
    on_path = shutil.which("postgres")
    return None if on_path is None else Path(on_path).resolve().parent


def why_not() -> str | None:
    """Why no server can be started here."""
    if found() is None:
        return "needs a PostgreSQL server: install the package postgresql"
    if os.geteuid() == 0 and _account() is None:
        return f"PostgreSQL does not run as root, and there is no user {USER}"
    return None


class Postgres:
    def __init__(self) -> None:
        programs = found()
        assert programs is not None
        self._programs = programs
        # A socket's path is short, and another user must get there.
        self._folder = Path(tempfile.mkdtemp(prefix="lorry-pg-", dir="/tmp"))
        self._data = self._folder / "data"
        account = _account() if os.geteuid() == 0 else None
        self._as: dict[str, object] = {}
        if account is not None:
            os.chown(self._folder, account.pw_uid, account.pw_gid)
            self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", str(self._data), "-U", "lorry", "-A", "trust", "-N", "-E", "UTF8")

    def start(self) -> None:
        assert self._process is None
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._programs / "postgres"),
                    "-D",
                    str(self._data),
                    "-k",
                    str(self._folder),
                    *("-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200"),
                ],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **self._as,  # type: ignore[call-overload]
            )
        wait_until(self._answers, "PostgreSQL")

    def stop(self) -> None:
        """End it at once, as a power failure would, without an answer to anyone."""
        if self._process is not None:
            # Its children end with the postmaster.
            self._process.kill()
            self._process.wait()
            self._process = None
            wait_until(self._alone, "the end of PostgreSQL's children")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop its processes during the block. It accepts connections, and answers nothing."""
        # The postmaster first, which would take a child that stops for one that hangs.
        assert self._process is not None
        for pid in (self._process.pid, *self._processes()):
            _signal(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in self._processes():
                _signal(pid, signal.SIGCONT)

    def url(self, database: str) -> str:
        return f"postgresql://lorry@/{database}?host={self._folder}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new, empty one."""
        name = f"d{uuid.uuid4().hex}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        yield self.url(name)
        if self._process is None:
            self.start()
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            check=True,
            capture_output=True,
            cwd=self._folder,
            **self._as,  # type: ignore[call-overload]
        )

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.url("postgres")):
                return True
        except psycopg.OperationalError:
            return False

    def _alone(self) -> bool:
        # A new one would refuse the shared memory that an old child still has.
        return not self._processes()

    def _processes(self) -> list[int]:
        data = str(self._data)
        found = []
        for entry in Path("/proc").glob("[0-9]*/cwd"):
            with suppress(OSError):
                if str(entry.readlink()) == data:
                    found.append(int(entry.parent.name))
        return found


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _account() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        return None


def _number(path: Path) -> float:
    try:
        return float(path.parents[1].name)
    except ValueError:
        return 0.0
