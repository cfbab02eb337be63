"""The examples of docker/routing: a real nginx and a real Envoy before two servers that share a
catalog and a store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support import proxies
from support import server as servers
from support.patience import ENDLESS, PATIENCE, wait_until
from support.server import Server, body
from support.streams import Refused, stream

Archive = Callable[..., Path]
KINDS = ("nginx", "envoy")
ADAPTERS = [f"a{number}" for number in range(6)]


@dataclass(frozen=True, slots=True)
class Fleet:
    """Two servers, and a client of the proxy before them."""

    servers: list[Server]
    http: httpx.Client

    def ask(self, adapter: str, **headers: str) -> dict[str, Any]:
        answer = self.http.post("/generate", json=body("Once", adapter, 2), headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def routed(self, adapter: str) -> dict[str, Any]:
        return self.ask(adapter, **header(adapter))

    def loads(self) -> float:
        return sum(server.metrics()["lorry_adapter_loads_total"] for server in self.servers)

    def home_of(self, adapter: str) -> tuple[Server, Server]:
        """The server that the adapter's requests go to, and the other."""
        one, two = self.servers
        before = requests_of(one).get(adapter, 0)
        self.routed(adapter)
        return (one, two) if requests_of(one).get(adapter, 0) > before else (two, one)


def header(adapter: str) -> dict[str, str]:
    return {"x-lorry-adapter": adapter}


def requests_of(server: Server) -> dict[str, float]:
    """Finished requests by adapter."""
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(server.client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "lorry_adapter_requests_total":
                name = sample.labels["adapter"]
                counts[name] = counts.get(name, 0) + sample.value
    return counts


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    reason = proxies.why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture
def fleet(
    kind: str, long_model: Path, archive: Archive, tmp_path: Path, catalog_url: str
) -> Iterator[Fleet]:
    environment = {"LORRY_CATALOG": catalog_url, "LORRY_STORE": f"file://{tmp_path}/store"}
    flags = ("--max-loras", "6", "--kv-cache-memory", "64MiB", "--shutdown-grace", f"{PATIENCE:g}")

    def start(name: str) -> Server:
        return servers.start(long_model, tmp_path / name, *flags, env=environment)

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(start, ("one", "two")))
    try:
        with proxies.proxy(kind, tmp_path / "proxy", [server.url for server in both]) as http:
            for number, name in enumerate(ADAPTERS):
                with archive("plain", number + 1).open("rb") as file:
                    files = {"file": ("a.zip", file)}
                    answer = http.post("/adapters", data={"name": name}, files=files)
                    assert answer.status_code == 201, answer.text
            for server in both:
                wait_until(lambda server=server: _knows_all(server))  # type: ignore[misc]
            yield Fleet(both, http)
    finally:
        for server in both:
            if server.process.poll() is None:
                server.stop()


def _knows_all(server: Server) -> bool:
    return len(server.client.get("/adapters").json()["adapters"]) == len(ADAPTERS)


def test_each_adapter_is_loaded_by_one_server(fleet: Fleet) -> None:
    expected = {name: fleet.routed(name)["generated_text"] for name in ADAPTERS}
    for _ in range(7):
        for name in ADAPTERS:
            told = fleet.routed(name)
            assert told["generated_text"] == expected[name]
            assert [one["name"] for one in told["adapters"]] == [name]
    one, two = (requests_of(server) for server in fleet.servers)
    assert not set(one) & set(two), "an adapter's requests went to both"
    assert {**one, **two} == dict.fromkeys(ADAPTERS, 8)
    assert fleet.loads() == len(ADAPTERS)
    # Without the header they go anywhere, so both servers load what both are asked for.
    for _ in range(10):
        for name in ADAPTERS:
            assert fleet.ask(name)["generated_text"] == expected[name]
    assert fleet.loads() > len(ADAPTERS)
    refused = fleet.http.post("/generate", json=body("Once", "a1"), headers=header("a0"))
    assert refused.status_code == 400 and "X-Lorry-Adapter" in refused.json()["error"]


def test_a_stream_reaches_the_client_while_it_runs_and_ends_with_it(fleet: Fleet) -> None:
    asked = body("Once", "a0", ENDLESS)
    with stream(fleet.http, asked, headers=header("a0")) as events:
        next(events)
        running = [server.metrics()["vllm:num_requests_running"] for server in fleet.servers]
        assert sorted(running) == [0, 1]
    for server in fleet.servers:
        wait_until(lambda server=server: _is_idle(server))  # type: ignore[misc]


def _is_idle(server: Server) -> bool:
    return server.metrics()["vllm:num_requests_running"] == 0


def test_a_server_that_dies(fleet: Fleet) -> None:
    """Its streams break off. What has no answer yet is answered by the other server, and so is
    everything later."""
    dies, lives = fleet.home_of("a0")
    expected = fleet.routed("a0")["generated_text"]
    asked = body("Once", "a0", ENDLESS)
    with (
        ThreadPoolExecutor(8) as pool,
        stream(fleet.http, asked, headers=header("a0")) as events,
    ):
        next(events)
        with dies.frozen():
            waiting = [pool.submit(fleet.routed, "a0") for _ in range(8)]
            dies.process.kill()
        with pytest.raises((httpx.TransportError, Refused)):
            for _ in events:
                pass
        assert [one.result()["generated_text"] for one in waiting] == [expected] * 8
    dies.wait()
    for name in ADAPTERS:
        assert fleet.routed(name)["adapters"][0]["name"] == name
    assert requests_of(lives).keys() == set(ADAPTERS)


def test_a_server_that_stops(fleet: Fleet) -> None:
    """Its streams end whole, and new requests are answered by the other server."""
    stops, lives = fleet.home_of("a0")
    with stream(fleet.http, body("Once", "a0", 400), headers=header("a0")) as events:
        next(events)
        with stops.frozen():
            stops.terminate()
        for _ in range(5):
            assert fleet.routed("a0")["generated_text"]
        rest = list(events)
    assert len(rest) == 399
    assert rest[-1]["details"]["finish_reason"] == "length"
    assert stops.wait() == 0
    assert requests_of(lives)["a0"] >= 5


class Pausing(BaseHTTPRequestHandler):
    """Sends an event, and the next when the client has the first. It asks no proxy for anything,
    and its answer ends with the connection: nginx buffers that, and passes chunks on."""

    protocol_version = "HTTP/1.1"
    arrived: threading.Event

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"data: 1\n\n")
        self.wfile.flush()
        assert self.arrived.wait(PATIENCE)
        self.wfile.write(b"data: 2\n\n")

    def log_message(self, *_: object) -> None:
        pass


def test_each_event_is_passed_on_at_once(kind: str, tmp_path: Path) -> None:
    """Lorry's own streams ask nginx not to buffer; the configuration does it by itself as well."""
    arrived = threading.Event()
    handler = type("Handler", (Pausing,), {"arrived": arrived})
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=upstream.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{upstream.server_address[1]}"
    try:
        with (
            proxies.proxy(kind, tmp_path, [url, url]) as http,
            http.stream("POST", "/generate", json={}) as answer,
        ):
            chunks = answer.iter_bytes()
            assert next(chunks) == b"data: 1\n\n"
            arrived.set()
            assert b"".join(chunks) == b"data: 2\n\n"
    finally:
        arrived.set()
        upstream.shutdown()
        thread.join()
        upstream.server_close()
