"""The little HTTP client: every way to cut an answer into pieces reads the same."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.bench.answer import AnswerReader, BenchAnswer, MalformedAnswer

EVENTS = (
    b'data:{"a":1}\n\n',
    b": comment\n\n",
    b'event: x\ndata: {"a":2}\n\n',
    b"data: [DONE]\n\n",
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKED += b"".join(f"{len(one):X};x=y\r\n".encode() + one + b"\r\n" for one in EVENTS)
CHUNKED += b"0\r\nTrailer: 1\r\n\r\n"
SIZED = HEAD + b"Content-Length: %d\r\n\r\n" % sum(map(len, EVENTS)) + b"".join(EVENTS)
ENDLESS = HEAD + b"\r\n" + b"".join(EVENTS)


def read(pieces: list[bytes], *, closes: bool = False) -> AnswerReader:
    reader = AnswerReader()
    for time, piece in enumerate(pieces):
        reader.feed(piece, float(time))
    if closes:
        reader.closed()
    return reader


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    places = sorted(draw(st.sets(st.integers(1, len(data) - 1), max_size=12)))
    ends = [0, *places, len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


@given(st.sampled_from([CHUNKED, SIZED, ENDLESS]).flatmap(cut))
def test_pieces_of_any_size_read_the_same(pieces: list[bytes]) -> None:
    endless = b"".join(pieces) == ENDLESS
    reader = read(pieces, closes=endless)
    answer = reader.answer
    assert reader.done and answer.status == 200 and answer.keeps_open is not endless
    assert answer.body == b"".join(EVENTS)
    assert [data for _, data in answer.events()] == [b'{"a":1}', b'{"a":2}', b"[DONE]"]
    times = [time for time, _ in answer.events()]
    assert times == sorted(times) and times[-1] <= len(pieces) - 1


def test_an_event_has_the_time_of_its_last_byte() -> None:
    answer = BenchAnswer(200, True, [(1.0, b"data:"), (2.0, b"1\n\ndata:2\r"), (3.0, b"\n\r\n")])
    assert list(answer.events()) == [(2.0, b"1"), (3.0, b"2")]


def test_what_has_no_body_is_done_at_once() -> None:
    assert read([b"HTTP/1.1 204 No Content\r\n\r\n"]).done
    assert read([b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).done


def test_continue_is_no_answer() -> None:
    reader = read([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"])
    assert reader.done and reader.answer.body == b"hi"


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nConnection: Close\r\n", b"HTTP/1.0 200 OK\r\n"]
)
def test_a_server_that_closes_is_believed(head: bytes) -> None:
    assert not read([head + b"content-length: 1\r\n\r\nx"]).answer.keeps_open


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_answer_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        read([data])


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200", CHUNKED[:-3], SIZED[:-1]])
def test_an_answer_cut_short_is_no_answer(data: bytes) -> None:
    with pytest.raises(MalformedAnswer, match="broke off"):
        read([data], closes=True)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": "no such adapter", "error_type": "not_found"}', "404: no such adapter"),
        (b'{"error": {"message": "no such\\nadapter"}}', "404: no such adapter"),
        (b'{"detail": "Not Found"}', "404: Not Found"),
        (b"<html>", "404: <html>"),
    ],
)
def test_a_refusal_is_one_line(body: bytes, said: str) -> None:
    assert BenchAnswer(404, True, [(0.0, body)]).reason() == said
