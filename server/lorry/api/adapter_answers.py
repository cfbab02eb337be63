"""The answers of `/adapters`: records as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from lorry.advice import advised
from lorry.api.adapter_schema import version_view
from lorry.api.fetches import Fetches
from lorry.api.inspections import Inspections
from lorry.api.residencies import Residencies
from lorry.api.voices import Voices
from lorry_adapters.registry.record import AdapterRecord, Share
from lorry_adapters.registry.registry import Registry


class AdapterAnswers:
    def __init__(
        self,
        registry: Registry,
        residencies: Residencies,
        voices: Voices,
        fetches: Fetches,
        watched: Callable[[], Mapping[str, str]] | None,
        base_parameters: int,
    ) -> None:
        self._registry = registry
        self._residencies = residencies
        self._voices = voices
        self._fetches = fetches
        self._watched = watched
        self._inspections = Inspections(registry, base_parameters)

    async def one(
        self,
        record: AdapterRecord,
        status: int = 200,
        *,
        name: str | None = None,
        inspect: bool = False,
    ) -> Response:
        """Return a response with a record, and its digest as `ETag`. `name`: the name that was
        asked for, perhaps an alias. `inspect`: read the files, too; raises as `Inspections.of`."""
        headers = {"ETag": f'"{record.current.digest}"'}
        view = self._view(record)
        if name is not None and name != record.name:
            view["alias"] = name
        if record.current.words:
            view["words_left_out"] = await self._voices.left_out(record.name, record.current)
        if inspect:
            view["inspection"] = await self._inspections.of(record)
        return JSONResponse(view, status_code=status, headers=headers)

    def all(self) -> Response:
        records = self._registry.records()
        answer: dict[str, Any] = {"adapters": [self._view(record) for record in records]}
        if self._watched is not None:
            sees = self._registry.policy.sees
            found = self._watched().items()
            answer["watch_problems"] = {name: why for name, why in found if sees(name)}
        return JSONResponse(answer)

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
            "split": _weights(record.rules.split),
            "aliases": {
                alias.name: _meaning(alias.shares)
                for alias in record.rules.aliases
                if self._registry.shows(record, alias.name)
            },
            "keep_versions": record.rules.keep_versions,
            "keep_days": record.rules.keep_days,
        }


def _weights(shares: Sequence[Share]) -> dict[str, int]:
    return {str(share.version): share.weight for share in shares}


def _meaning(shares: Sequence[Share]) -> int | dict[str, int]:
    return shares[0].version if len(shares) == 1 else _weights(shares)
