"""The answers of `/adapters`: records as JSON."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from lorry.advice import advised
from lorry.api.adapter_schema import version_view
from lorry.api.fetches import Fetches
from lorry.api.residencies import Residencies
from lorry.api.voices import Voices
from lorry_adapters.registry.record import AdapterRecord
from lorry_adapters.registry.registry import Registry


class AdapterAnswers:
    def __init__(
        self, registry: Registry, residencies: Residencies, voices: Voices, fetches: Fetches
    ) -> None:
        self._registry = registry
        self._residencies = residencies
        self._voices = voices
        self._fetches = fetches

    async def one(self, record: AdapterRecord, status: int = 200) -> Response:
        """Return a response with a record, and its digest as `ETag`."""
        headers = {"ETag": f'"{record.current.digest}"'}
        view = self._view(record)
        if record.current.words:
            view["words_left_out"] = await self._voices.left_out(record.name, record.current)
        return JSONResponse(view, status_code=status, headers=headers)

    def all(self) -> Response:
        records = self._registry.records()
        return JSONResponse({"adapters": [self._view(record) for record in records]})

    def _view(self, record: AdapterRecord) -> dict[str, Any]:
        current = version_view(record.current)
        why = self._registry.why_broken(record.current.digest)
        return {
            "name": record.name,
            **current,
            "enabled": record.enabled,
            "scale": record.scale,
            "pinned": record.pinned,
            "description": record.description,
            "residency": self._residencies.of(record.current.digest),
            "broken": None if why is None else advised(why),
            "fetch": self._fetches.view(record.name),
            "created_at": record.created_at.isoformat(),
            "updated_at": record.updated_at.isoformat(),
            "versions": [version_view(version) for version in record.versions],
        }
