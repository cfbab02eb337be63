"""What is asked of a server before and after the load: is it there, its names, its adapters."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from lorry.errors import LorryError

TIMEOUT = httpx.Timeout(600.0, connect=10.0)


class ServerRefused(LorryError):
    """The server cannot be measured: it is not there, or says no."""


class Administration:
    """One server. Every failure is a ServerRefused."""

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url.rstrip("/")
        # The load goes straight to the server; so does this, whatever proxies there are.
        self._client = httpx.Client(
            base_url=self._url, headers=headers, timeout=TIMEOUT, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def info(self) -> dict[str, Any]:
        """`/info` of a Lorry server."""
        found = self._ask("GET", "/info").json()
        if not isinstance(found, dict) or "max_lora_rank" not in found:
            raise ServerRefused(f"{self._url} is no Lorry server; say what it speaks with --api")
        return found

    def first_model(self) -> str:
        """The base's name at an OpenAI server: the first of its list."""
        models = self._ask("GET", "/v1/models").json().get("data") or []
        if not models:
            raise ServerRefused(f"{self._url} lists no models; name one with --model-name")
        return str(models[0]["id"])

    def llama_cpp_adapters(self) -> list[int]:
        """The numbers of the adapters that llama.cpp's server was started with."""
        return [int(item["id"]) for item in self._ask("GET", "/lora-adapters").json()]

    def upload(self, name: str, folder: Path) -> bool:
        """True where it was not there before."""
        with ExitStack() as stack:
            files = {
                name: (name, stack.enter_context((folder / name).open("rb")))
                for name in ("adapter_config.json", "adapter_model.safetensors")
            }
            answer = self._ask("POST", "/adapters", data={"name": name}, files=files)
        return answer.status_code == 201

    def remove(self, name: str) -> None:
        self._ask("DELETE", f"/adapters/{name}")

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            response = self._client.request(method, path, **more)
        except httpx.ConnectError as error:
            raise ServerRefused(f"no server at {self._url} ({error})") from error
        except httpx.HTTPError as error:
            raise ServerRefused(f"{self._url}: {error or type(error).__name__}") from error
        if not response.is_success:
            said = " ".join(response.text[:300].split())
            raise ServerRefused(f"{method} {path} was answered {response.status_code}: {said}")
        return response
