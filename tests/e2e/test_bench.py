"""`lorry bench` against real servers, and against one whose answers are wrong."""

from __future__ import annotations

import json
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lorry.cli import main
from support import server
from support.server import Server

Run = Callable[..., tuple[int, str, str]]
SHORT = ("--prompt-words", "4", "--new-tokens", "6", "--repeats", "2", "-n", "8", "-c", "4")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["bench", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server.running(model, tmp_path_factory.mktemp("bench") / "home") as one:
        yield one


def test_a_server_of_its_own(run: Run, model: Path, tmp_path: Path) -> None:
    flags = ("--quantize", "none", "--kv-cache-memory", "4MiB", "--max-loras", "2")
    files = ("--json", tmp_path / "made" / "w.json", "--plot", tmp_path / "w.svg")
    load = ("-a", "3", "--popularity", "uniform", "--random-scales", "--check-answers")
    code, out, err = run("--model", model, *SHORT, *load, *files, "--", *flags)
    assert code == 0, err
    assert "3 adapters, uniform" in out
    assert "16 answers are the same when asked alone" in err
    document = json.loads((tmp_path / "made" / "w.json").read_text())
    (row,) = document["rows"]
    figures = row["figures"]
    assert figures["requests"] == 16 and figures["errors"] == 0 and figures["tokens"] == 96
    assert len(figures["throughputs"]) == len(row["repeats"]) == 2
    times = (figures["first_token"]["p50"], figures["end_to_end"]["p50"])
    assert 0 < times[0] < times[1]
    assert document["server"]["max_loras"] == 2 and document["server"]["quantization"] == "none"
    assert len(row["server_memory"]) == 3 and min(row["server_memory"]) > 1 << 20
    assert document["answers"] == {"checked": 16, "different": []}
    assert str(tmp_path) not in json.dumps(document), "a report knows no paths"
    assert ElementTree.parse(tmp_path / "w.svg").getroot().tag.endswith("svg")


def test_a_server_that_runs_and_keeps_only_its_own_adapters(
    run: Run, served: Server, model: Path
) -> None:
    code, _, err = run("--url", served.url, "--model", model, *SHORT, "-a", "2", "--check-answers")
    assert code == 0, err
    assert served.client.get("/adapters").json()["adapters"] == []


def test_arrivals_at_their_time(run: Run, served: Server, tmp_path: Path) -> None:
    load = ("--rate", "40", "--cv", "2", "-n", "12", "--repeats", "1", "--new-tokens", "2-5")
    code, out, err = run("--url", served.url, *load, "--json", tmp_path / "w.json")
    assert code == 0, err
    assert "base, 40/s cv 2" in out, "a table says what load it is of"
    (row,) = json.loads((tmp_path / "w.json").read_text())["rows"]
    assert row["load"] == "40/s cv 2" and row["figures"]["errors"] == 0


def test_sampled_answers_are_drawn_again_alone(run: Run, served: Server) -> None:
    sampled = ("--temperature", "0.8", "--top-p", "0.95", "--check-answers")
    code, out, err = run("--url", served.url, *SHORT, *sampled)
    assert code == 0, err
    assert "base, c=4, temperature 0.8, top-p 0.95" in out
    code, _, err = run("--url", served.url, *SHORT, "--top-p", "0.95")
    assert code == 2 and "--temperature" in err


def test_conversations_behind_a_system_prompt(run: Run, served: Server, tmp_path: Path) -> None:
    """Each turn is sent with all that came before, and alone it is answered the same."""
    load = ("-n", "6", "-c", "2", "--turns", "3", "--system-words", "20", "--repeats", "1")
    short = ("--prompt-words", "4", "--new-tokens", "6", "--check-answers")
    code, out, err = run("--url", served.url, *load, *short, "--json", tmp_path / "w.json")
    assert code == 0, err
    assert "base, 20 words shared, 3 turns, c=2" in out
    assert "first token by turn, ms: " in err
    assert "6 answers are the same when asked alone" in err
    (row,) = json.loads((tmp_path / "w.json").read_text())["rows"]
    assert (row["turns"], row["system_words"]) == (3, 20)
    assert 0.3 < row["figures"]["cached"] < 1
    assert len(row["figures"]["first_token_by_turn"]) == 3
    code, _, err = run("--url", served.url, "--rate", "2", "--turns", "2")
    assert code == 2 and "--turns" in err
    code, _, err = run("--url", served.url, "--preset", "S", "--zipf")
    assert code == 2 and "--zipf" in err


def test_openai_s_api_with_adapters_by_their_name(
    run: Run, served: Server, model: Path, tmp_path: Path
) -> None:
    code, out, _ = run("--model", model, "-a", "2", "--rank", "4", "--write-adapters", tmp_path)
    assert code == 0
    folders = [Path(line) for line in out.split()]
    assert [folder.name for folder in folders] == ["bench-r4-0", "bench-r4-1"]
    for folder in folders:
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        posted = served.client.post("/adapters", data={"name": folder.name}, files=files)
        assert posted.status_code == 201, posted.text
    flags = ("--api", "openai", "--url", served.url, "-a", "2", "--rank", "4")
    code, _, err = run(*flags, *SHORT, "--check-answers", "--json", tmp_path / "w.json")
    assert code == 0, err
    (row,) = json.loads((tmp_path / "w.json").read_text())["rows"]
    assert row["figures"]["errors"] == 0 and row["figures"]["tokens"] == 96


def test_requests_that_are_refused_are_told_of(run: Run, served: Server) -> None:
    code, _, err = run("--url", served.url, *SHORT, "-a", "1", "--adapter-names", "nobody")
    assert code == 1
    assert "no request succeeded" in err and "404" in err and "nobody" in err


class Wrong(BaseHTTPRequestHandler):
    """A server whose answers depend on who else is there, as none may."""

    protocol_version = "HTTP/1.1"
    left: Iterator[int]
    """Of those who are asked together; whoever comes later is asked alone."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._send(json.dumps({"max_lora_rank": 8, "model_id": "wrong"}).encode())

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        alone = next(self.left, None) is None
        events = b""
        for index in range(asked["parameters"]["max_new_tokens"]):
            event = {"token": {"id": index + (0 if alone else 7)}, "generated_text": "same"}
            events += f"data:{json.dumps(event)}\n\n".encode()
        self._send(events)

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def wrong_server(together: int) -> Iterator[str]:
    Wrong.left = iter(range(together))
    http = ThreadingHTTPServer(("127.0.0.1", 0), Wrong)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def test_an_answer_that_depends_on_its_neighbours_is_found(run: Run) -> None:
    load = ("-c", "2", "-n", "2", "--repeats", "1", "--warm-up", "0", "--new-tokens", "3")
    with wrong_server(2) as url:
        code, _, err = run("--url", url, *load, "--check-answers")
    assert code == 1
    assert "2 of 2 answers differ from the same asked alone" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--popularity", "often", "-a", "2"], 2, "--popularity often"),
        (["--prompt-words", "9-3"], 2, "--prompt-words 9-3"),
        (["--api", "tgi"], 2, "--api tgi"),
        (["--api", "openai"], 2, "--url"),
        (["--preset", "X"], 2, "--preset X"),
        (["-c", "2", "--rate", "3"], 2, "--concurrency and --rate"),
        (["--url", "http://127.0.0.1:9", "--", "--quantize", "nf4"], 2, "--quantize"),
        (["--url", "http://127.0.0.1:9"], 1, "no server at http://127.0.0.1:9"),
        (["--url", "127.0.0.1:9"], 1, "no http:// or https:// URL"),
        (["--model", "./nowhere"], 1, "nowhere"),
    ],
)
def test_mistakes_are_one_line(run: Run, arguments: list[str], code: int, said: str) -> None:
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert said in err


def test_a_server_that_does_not_start_says_why(run: Run, model: Path) -> None:
    code, _, err = run("--model", model, *SHORT, "--", "--max-loras", "0")
    assert code == 1
    assert "the server ended with status 2" in err and "--max-loras" in err
