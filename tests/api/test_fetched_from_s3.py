"""Adapters from an S3 store: a real server on this machine, by moto."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from api.fetching import fetch
from api.live import Live, refused, serve
from lorry.settings import Settings


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="team")
        client.create_bucket(Bucket="other")
        yield client
    server.stop()


@pytest.fixture(scope="module")
def fetching(
    tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings], store: Any
) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("home")
    sources = ("s3://team/adapters", "gs://team")
    with serve(settings_for(home, adapter_sources=sources, max_upload=1 << 20)) as one:
        yield one


def test_a_folder_and_an_archive(
    fetching: Live,
    store: Any,
    archives: Callable[[int], Path],
    peft_adapter: Callable[..., Path],
) -> None:
    for file in peft_adapter("llama", "plain", seed=1).iterdir():
        store.put_object(Bucket="team", Key=f"adapters/a/{file.name}", Body=file.read_bytes())
    store.put_object(Bucket="team", Key="adapters/a.zip", Body=archives(1).read_bytes())
    digest = fetching.upload("uploaded", archives(1)).json()["digest"]
    for name, path in (("one", "a"), ("two", "a/"), ("three", "a.zip")):
        answer = fetch(fetching, f"s3://team/adapters/{path}", name=name)
        assert answer.status_code == 201, answer.text
        assert answer.json()["digest"] == digest


def test_what_is_refused(fetching: Live, store: Any) -> None:
    for source in ("s3://other/adapters/a", "s3://team/a", "s3://team/adapters-two/a"):
        refused(fetch(fetching, source), 403, "forbidden_source")
    for source in ("s3://team/adapters/../a", "s3://team", "s3://team/adapters/a?versionId=1"):
        refused(fetch(fetching, source), 422, "invalid_request")
    error = refused(fetch(fetching, "s3://team/adapters/nobody"), 415, "unsupported_upload")
    assert "has no adapter_config.json" in error["message"]
    error = refused(fetch(fetching, "s3://team/adapters/no.zip"), 502, "source_failed")
    assert "does not exist" in error["message"]
    store.put_object(Bucket="team", Key="adapters/large.zip", Body=bytes(2 << 20))
    refused(fetch(fetching, "s3://team/adapters/large.zip"), 413, "upload_too_large")
    store.put_object(Bucket="team", Key="adapters/text.zip", Body=b"hello")
    refused(fetch(fetching, "s3://team/adapters/text.zip"), 415, "unsupported_upload")


def test_a_missing_extra_is_named(fetching: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    error = refused(fetch(fetching, "gs://team/a"), 422, "unsupported_parameter")
    assert "pip install 'lorry[gs]'" in error["message"]
