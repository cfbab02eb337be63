"""Records by name and alias, as the policy shows them. The inventory calls it under its lock."""

from __future__ import annotations

from collections.abc import Collection

from lorry_adapters.errors import InvalidSelection, UnknownAdapter
from lorry_adapters.registry.names import MAX_NAME, nearest
from lorry_adapters.registry.policy import Policy
from lorry_adapters.registry.record import AdapterChoice, AdapterRecord, VersionRecord
from lorry_adapters.registry.version_rules import drawn, shares_of, version_of


class NoSuchName(Exception):
    """No adapter and no alias has this name. Searching for a similar one takes too long under the
    lock."""

    def __init__(self, name: str) -> None:
        self.name = name

    def error(self, names: Collection[str]) -> UnknownAdapter:
        """Return the error for people. `names`: those that the caller may see."""
        meant = nearest(self.name, names)
        hint = "" if meant is None else f"; did you mean {meant!r}?"
        error = UnknownAdapter(f"no adapter is named {self.name[: MAX_NAME + 1]!r}{hint}")
        error.meant = meant
        return error


class NameIndex:
    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._records: dict[str, AdapterRecord] = {}
        self._aliases: dict[str, str] = {}
        """The adapter's name, by alias."""

    def find(self, name: str) -> AdapterRecord | None:
        """Return the record of that name, which is no alias, whatever the policy hides."""
        return self._records.get(name)

    def adapter_of(self, name: str) -> str | None:
        """Return the adapter that has this name or alias, whatever the policy hides."""
        return name if name in self._records else self._aliases.get(name)

    def all(self) -> Collection[AdapterRecord]:
        return self._records.values()

    def put(self, record: AdapterRecord) -> AdapterRecord | None:
        """Replace the record of its name. Return the one before."""
        old = self._records.get(record.name)
        if old is not None:
            self._forget_aliases(old)
        self._records[record.name] = record
        self._aliases.update((alias.name, record.name) for alias in record.rules.aliases)
        return old

    def pop(self, name: str) -> AdapterRecord:
        old = self._records.pop(name)
        self._forget_aliases(old)
        return old

    def record(self, name: str) -> AdapterRecord:
        """Return the record that has this name or alias. Raises NoSuchName."""
        record = self._records.get(self.adapter_of(name) or name)
        if record is None or not self.shows(record, name):
            raise NoSuchName(name)
        return record

    def shows(self, record: AdapterRecord, name: str) -> bool:
        """Return whether the policy shows the record's name or alias `name`."""
        # A label belongs to its adapter; another alias is a name of its own.
        sees = self._policy.sees
        return sees(record.name) and (name == record.name or "@" in name or sees(name))

    def names(self) -> list[str]:
        """Return the adapters' names that the policy shows, sorted."""
        return [name for name in sorted(self._records) if self._policy.sees(name)]

    def resolve(self, choice: AdapterChoice) -> tuple[AdapterRecord, VersionRecord]:
        """Return what a choice means. Raises NoSuchName, UnknownAdapter, InvalidSelection."""
        try:
            record = self.record(choice.name)
        except NoSuchName:
            name, at, label = choice.name.partition("@")
            if not at:
                raise
            raise InvalidSelection(
                f"{label[:80]!r} is neither a version nor an alias of adapter {name[:140]!r}; "
                f"write {name[:140]}@3, or the name alone"
            ) from None
        if choice.version is not None:
            if choice.name != record.name:
                raise UnknownAdapter(
                    f"{choice.name!r} is an alias and has no versions of its own; write "
                    f"{record.name}@{choice.version}"
                )
            return record, version_of(record, choice.version)
        shares = shares_of(record, choice.name)
        return record, version_of(record, drawn(record, shares, choice.key) if shares else None)

    def _forget_aliases(self, record: AdapterRecord) -> None:
        for alias in record.rules.aliases:
            # Another server may have given it to another adapter, which was shown first.
            if self._aliases.get(alias.name) == record.name:
                del self._aliases[alias.name]
