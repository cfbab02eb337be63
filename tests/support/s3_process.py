"""An S3 server in a process of its own, by moto, that survives SIGKILL.

moto keeps everything in memory. It also records each request before it answers; started again, it
is given the record, so that what was acknowledged is there once more.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import httpx

from support.patience import client, wait_until

BUCKET = "team"
_CHANGES = {"PUT", "POST", "DELETE"}


class S3Process:
    """A running server with an empty bucket."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._record = folder / "requests"
        self._log = folder / "log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.start()
        self._client().create_bucket(Bucket=BUCKET)

    def start(self) -> None:
        """With all that it had. Whoever uses it must not ask meanwhile."""
        self._keep_changes()
        recording = {"MOTO_ENABLE_RECORDING": "1", "MOTO_RECORDER_FILEPATH": str(self._record)}
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **recording}
            )
        with client(self.url) as http:
            wait_until(lambda: _answers(http), "the S3 server")
            if self._record.exists():
                http.post("/moto-api/recorder/replay-recording").raise_for_status()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def found(self) -> set[str]:
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return {one["Key"] for page in pages for one in page.get("Contents", [])}

    def _client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )

    def _keep_changes(self) -> None:
        """Drop requests that read, and one that was cut off when it was written down."""
        if not self._record.exists():
            return
        text, decoder, at = self._record.read_text(), json.JSONDecoder(), 0
        with self._record.open("w") as file:
            while at < len(text):
                if text[at] == "\n":
                    at += 1
                    continue
                try:
                    entry, at = decoder.raw_decode(text, at)
                except ValueError:
                    return
                if entry["method"] in _CHANGES:
                    file.write(json.dumps(entry) + "\n")


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/moto-api/").status_code < 500
    except httpx.TransportError:
        return False
