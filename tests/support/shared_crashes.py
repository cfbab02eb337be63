"""`make crash`, its second part: two servers over one PostgreSQL and one S3 store, with clients
that change everything at both. Each of the four is killed in turn, at a random moment.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx

from support import server as servers
from support.believed import ADMIN, HEADERS, STREAMS, Believed, check_answers
from support.crashes import LIFE, Say, Scene, kill
from support.patience import wait_until
from support.postgres import Postgres, why_not
from support.s3_process import BUCKET, S3Process
from support.server import Server

MORE = 5
"""Changes that each client still makes after a part was killed."""
ClientFor = Callable[[str], httpx.Client]
PARTS = ("one", "database", "two", "store")


class Company:
    """Two servers, their database and their store."""

    def __init__(self, scene: Scene, root: Path, url: str, postgres: Postgres) -> None:
        self._model, self._root, self._postgres = scene.model, root, postgres
        self.store = S3Process(root / "s3")
        self._environment = {
            "LORRY_API_KEY": ADMIN,
            "LORRY_CATALOG": url,
            "LORRY_STORE": f"s3://{BUCKET}/lorry",
            **self.store.environment,
        }
        with ThreadPoolExecutor(2) as pool:
            self.servers: list[Server] = list(pool.map(self._started, (0, 1)))

    def _started(self, at: int) -> Server:
        home = self._root / PARTS[2 * at]
        started = servers.start(self._model, home, env=self._environment)
        started.client.headers.update(HEADERS)
        return started

    def kill(self, part: str) -> None:
        if part == "database":
            self._postgres.stop()
        elif part == "store":
            self.store.kill()
        else:
            kill(self.servers[PARTS.index(part) // 2].pid)

    def again(self, part: str) -> None:
        if part == "database":
            self._postgres.start()
        elif part == "store":
            with ExitStack() as frozen:
                for server in self.servers:
                    frozen.enter_context(server.frozen())
                self.store.start()
        else:
            at = PARTS.index(part) // 2
            self.servers[at].process.wait()
            self.servers[at].client.close()
            self.servers[at] = self._started(at)
        for server in self.servers:
            wait_until(lambda server=server: is_well(server), "a server to use its parts again")

    def close(self) -> None:
        for server in self.servers:
            server.stop()
        self.store.kill()


@contextmanager
def company(scene: Scene, root: Path, url: str, postgres: Postgres) -> Iterator[Company]:
    made = Company(scene, root, url, postgres)
    try:
        yield made
    finally:
        made.close()


class Spread:
    """Which server gets a client's next change: any, once it shows the last one."""

    def __init__(self, believed: Believed, parts: Company) -> None:
        self._believed, self._parts = believed, parts
        self._made: dict[str, tuple[int, float]] = {}
        """By name: the server that made the last change, and when."""
        self.longest = 0.0
        """Seconds from a change to its being in force at the other server, all parts alive."""

    def again(self) -> None:
        """All parts are alive, and both servers agree."""
        self._made.clear()

    def client_for(self, dice: random.Random, part: str, dead: threading.Event) -> ClientFor:
        def choose(name: str) -> httpx.Client:
            at = dice.randrange(2)
            last, since = self._made.get(name, (at, 0.0))
            if at != last:
                # Without its database, a server learns nothing more.
                wait_until(lambda: self._knows(at, name) or (dead.is_set() and part == "database"))
                if not dead.is_set():
                    self.longest = max(self.longest, time.monotonic() - since)
            self._made[name] = at, time.monotonic()
            return self._parts.servers[at].client

        return choose

    def _knows(self, at: int, name: str) -> bool:
        (state,) = self._believed.possible[name]
        try:
            return self._believed.agrees(self._parts.servers[at].client, name, state)
        except httpx.TransportError:
            return True


def crash_in_turn(
    scene: Scene,
    parts: Company,
    seed: int,
    moments: int,
    say: Say = lambda text: None,
    *,
    to_the_end: bool = False,
) -> str:
    """Kill the parts in turn, `moments` times in all. Return what happened, in a line.
    `to_the_end`: wait until everything that was removed has left the store."""
    dice = random.Random(seed)
    believed = Believed(scene.digests, scene.archives)
    spread = Spread(believed, parts)
    answers = 0
    for moment in range(moments):
        part = PARTS[moment % len(PARTS)]
        spread.again()
        dead = threading.Event()
        threading.Timer(dice.uniform(0.0, LIFE), partial(_end, parts, part, dead)).start()
        with ThreadPoolExecutor(len(STREAMS)) as pool:
            changing = []
            for stream in STREAMS:
                own = random.Random(f"{seed} {moment} {stream.names}")
                client_for = spread.client_for(own, part, dead)
                going_on = partial(next, _until(dead, MORE), False)
                changing.append(pool.submit(believed.run, stream, own, client_for, going_on))
        for one in changing:
            one.result()
        dead.wait()
        parts.again(part)
        first, second = (server.client for server in parts.servers)
        wait_until(lambda: listed(first) == listed(second), "both to agree")  # noqa: B023
        for client in (first, second):
            believed.settle(client)
        believed.check_audit(first)
        for client in (first, second):
            answers += check_answers(client, believed, scene.truth.tokens, dice)
        say(f"{moment + 1}: {part}; {sum(believed.made.values())} changes so far")
    if to_the_end:
        # The store keeps what was removed for a minute.
        with suppress(AssertionError):
            wait_until(lambda: not left_over(parts, believed))
        assert not left_over(parts, believed)
    made, unheard = sum(believed.made.values()), sum(believed.unheard.values())
    return (
        f"seed {seed}: {moments} kills of {', '.join(PARTS)} in turn; {made} changes acknowledged, "
        f"{unheard} unheard or refused; {answers} answers compared; a change was in force at the "
        f"other server after {spread.longest:.2f} s at most; {believed.made_by_kind}"
    )


def _end(parts: Company, part: str, dead: threading.Event) -> None:
    parts.kill(part)
    dead.set()


def _until(dead: threading.Event, more: int) -> Iterator[bool]:
    """True until `dead`, and `more` times after it."""
    while not dead.is_set():
        yield True
    for _ in range(more):
        yield True


def listed(client: httpx.Client) -> object:
    """Everything that servers of one catalog have in common."""
    adapters = client.get("/adapters").raise_for_status().json()["adapters"]
    for record in adapters:
        del record["residency"]
    return adapters, client.get("/keys").raise_for_status().json()


def is_well(server: Server) -> bool:
    ready = server.client.get("/health/ready")
    return ready.status_code == 200 and "warning" not in ready.json()


def left_over(parts: Company, believed: Believed) -> set[str]:
    """What lies in a home or in the store and belongs to nothing, and what the store lacks."""
    owned = {digest.replace(":", "-") for digest in believed.owned()}
    wrong = {key.split("/")[1] for key in parts.store.found() if "sha256-" in key} ^ owned
    for server in parts.servers:
        wrong |= {path.name for path in (server.home / "blobs").iterdir()} - owned
        # A mark stays if the other server has stored the content again; it deletes nothing then.
        wrong |= {path.name for path in (server.home / "expendable-in-store").iterdir()} - owned
        for folder in ("staging", "expendable"):
            wrong |= {str(path) for path in (server.home / folder).iterdir()}
    return wrong


def crash_parts(scene: Scene, root: Path, seed: int, moments: int, say: Say) -> str:
    """The long form, with a PostgreSQL of its own."""
    reason = why_not()
    if reason is not None:
        return f"two servers over one database: left out, {reason}"
    postgres = Postgres()
    try:
        postgres.start()
        with postgres.database() as url, company(scene, root, url, postgres) as parts:
            return crash_in_turn(scene, parts, seed, moments, say, to_the_end=True)
    finally:
        postgres.remove()
