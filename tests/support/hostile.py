"""What hostile uploads and requests cost a real server: `python -m support.hostile`.

Each is sent once, then all again, until `--count` have been. Meanwhile `/health/live`, which
the event loop answers and nothing else, is asked every 20 ms: the longest it has taken is how
long the loop stood still. Memory is the process's resident set, before, at its highest and a
few seconds after.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from support.bad_uploads import CONFIG, WEIGHTS
from support.hostile_archives import Hostile, hostile_archives
from support.hostile_files import hostile_files
from support.hostile_requests import HostileRequest, hostile_bodies, hostile_forms
from support.server import Server, running

say = partial(print, flush=True)
PING_SECONDS = 0.02
REST_SECONDS = 5.0


Send = Callable[[httpx.Client], httpx.Response]


@dataclass(frozen=True)
class Shot:
    """One hostile thing."""

    name: str
    load: Callable[[], Send]
    """Makes what is sent, which takes a while."""
    status: int


@dataclass
class Fired:
    """What came back, and what was seen meanwhile."""

    name: str
    status: int
    seconds: float
    blocked: float
    """Seconds: the slowest answer of `/health/live`."""
    says: str
    expected: bool


@dataclass(eq=False)
class Watch:
    """Asks `/health/live` and reads the memory, in a thread of its own."""

    server: Server
    worst: float = 0.0
    peak: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def take(self) -> float:
        worst, self.worst = self.worst, 0.0
        return worst

    def run(self) -> None:
        address = urlsplit(self.server.url)
        link = http.client.HTTPConnection(address.hostname or "", address.port, timeout=900)
        while not self._stop.wait(PING_SECONDS):
            began = time.monotonic()
            link.request("GET", "/health/live")
            link.getresponse().read()
            self.worst = max(self.worst, time.monotonic() - began)
            self.peak = max(self.peak, self.server.resident_bytes())
        link.close()

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self.run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def shots(folder: Path) -> Iterator[Shot]:
    """Everything that there is. `folder` holds an adapter that fits the server's base."""
    good = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    for name, bad in {**hostile_archives(good), **hostile_files(folder)}.items():
        yield Shot(name, partial(_upload, bad), bad.status)
    for name, request in {**hostile_forms(), **hostile_bodies()}.items():
        yield Shot(name, partial(_request, request), request.status)


def _upload(bad: Hostile) -> Send:
    content = bad.make()
    return lambda client: client.post(
        "/adapters", data={"name": "bad"}, files={"file": ("a", content)}
    )


def _request(request: HostileRequest) -> Send:
    content, headers = request.make(), {"content-type": request.content_type, **request.headers}
    return lambda client: client.post(request.path, headers=headers, content=content)


def fire(server: Server, shot: Shot, watch: Watch) -> Fired:
    send = shot.load()
    watch.take()
    began = time.monotonic()
    with httpx.Client(base_url=server.url, timeout=900) as client:
        answer = send(client)
    seconds = time.monotonic() - began
    if answer.status_code < 300:
        server.client.delete("/adapters/bad")
    time.sleep(3 * PING_SECONDS)
    fits = answer.status_code == shot.status
    return Fired(shot.name, answer.status_code, seconds, watch.take(), answer.text[:160], fits)


def report(server: Server, everything: list[Shot], count: int) -> list[Fired]:
    before = server.resident_bytes()
    fired = []
    with Watch(server) as watch:
        for shot in itertools.islice(itertools.cycle(everything), count):
            one = fire(server, shot, watch)
            fired.append(one)
            say(
                f"{one.name:52} {one.status:3}{' ' if one.expected else '!'} {one.seconds:7.2f} s  "
                f"loop {one.blocked * 1e3:7.0f} ms  {server.resident_bytes() >> 20:6} MiB  "
                f"{one.says if not one.expected else ''}"
            )
        time.sleep(REST_SECONDS)
    after = server.resident_bytes()
    slowest = max(fired, key=lambda one: one.seconds)
    longest = max(fired, key=lambda one: one.blocked)
    say(f"\n{len(fired)} hostile requests in {sum(one.seconds for one in fired):.0f} s")
    say(f"slowest answer        {slowest.seconds:.2f} s ({slowest.name})")
    say(f"longest block         {longest.blocked * 1e3:.0f} ms ({longest.name})")
    say(
        f"memory                {before >> 20} MiB before, {watch.peak >> 20} at most, "
        f"{after >> 20} after"
    )
    return fired


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a base's folder")
    parser.add_argument("adapter", type=Path, help="the folder of a PEFT adapter for it")
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--only", default="", help="a regular expression: those whose name has it")
    given, flags = parser.parse_known_args()
    everything = [shot for shot in shots(given.adapter) if re.search(given.only, shot.name)]
    with (
        tempfile.TemporaryDirectory() as home,
        running(given.model, Path(home) / "home", *flags) as server,
    ):
        server.generate("warm", tokens=4)
        fired = report(server, everything, given.count)
    sys.exit(any(not one.expected for one in fired))


if __name__ == "__main__":
    main()
