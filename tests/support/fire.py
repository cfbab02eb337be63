"""Many requests at once, each from a client of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from support.patience import PATIENCE, client


def together(url: str, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers of `/generate`, in the order of `bodies`; all are sent at one moment."""
    start = threading.Barrier(len(bodies))

    def one(body: dict[str, Any]) -> dict[str, Any]:
        with client(url) as http:
            http.get("/health")  # the connection is there before the start
            start.wait(PATIENCE)
            return _answer(http.post("/generate", json=body))

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(one, bodies))


def alone(url: str, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, one after the other."""
    with client(url) as http:
        return [_answer(http.post("/generate", json=body)) for body in bodies]


def _answer(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, (response.status_code, response.text)
    answer: dict[str, Any] = response.json()
    return answer


def token_ids(answer: dict[str, Any]) -> list[int]:
    return [token["id"] for token in answer["details"]["tokens"]]
