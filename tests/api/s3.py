"""An S3 server on this machine, by moto, that can go away and come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer


class S3:
    """A running server with the bucket `team`."""

    def __init__(self, port: int = 0) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Any:
        return boto3.client("s3", endpoint_url=self.url)

    def found(self, bucket: str = "team") -> set[str]:
        found = self.client().list_objects_v2(Bucket=bucket).get("Contents", [])
        return {one["Key"] for one in found}

    def leave(self) -> None:
        """Refuse connections. What it stores stays."""
        self._server.stop()

    def come_back(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()


@contextmanager
def serve_s3() -> Iterator[S3]:
    """A server whose address and keys are in the environment."""
    server = S3()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server.client().create_bucket(Bucket="team")
        try:
            yield server
        finally:
            server.leave()
