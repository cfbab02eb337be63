"""Places in which adapters are looked for by the names of requests: `--adapter-resolvers`.

hub                    org/name is the hub's org/name
hub:org                name, or org/name, is the hub's org/name
s3://bucket/prefix     name is s3://bucket/prefix/name; the same for gs:// and https://
"""

from __future__ import annotations

from collections.abc import Iterable

from lorry.errors import RequestError, SettingsError
from lorry.fetch.allowed import Allowed
from lorry.fetch.source_text import BucketSource, HttpsSource, source_of
from lorry.hostname import HUB
from lorry_adapters.errors import ForbiddenSource


def check_resolvers(resolvers: Iterable[str], sources: Iterable[str], hub_endpoint: str) -> None:
    """Raise SettingsError for a resolver from which `--adapter-sources` lets nothing be fetched."""
    allowed = Allowed.of(sources)
    for resolver in resolvers:
        text = source_for(resolver, "org/name" if resolver == HUB else "name")
        assert text is not None
        try:
            source = source_of(text, hub_endpoint)
            if isinstance(source, BucketSource):
                allowed.check_bucket(source.shown)
            elif isinstance(source, HttpsSource):
                allowed.check_host(source.address.host, source.address.port)
        except (ForbiddenSource, RequestError) as error:
            raise SettingsError(f"--adapter-resolvers {resolver}: {error.message}") from error


def source_for(resolver: str, name: str) -> str | None:
    """Return the source of adapter `name`, or None if the resolver has none of such a name."""
    kind, _, own = resolver.partition(":")
    if kind != HUB:
        return None if ":" in name else f"{resolver}/{name}"
    org, slash, rest = name.partition("/")
    if "/" in rest or ":" in name:
        return None
    if not own:
        return name if slash else None
    if not slash:
        return f"{own}/{name}"
    return name if org == own else None
