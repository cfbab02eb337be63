"""The fields of an upload beside its files."""

from __future__ import annotations

from dataclasses import dataclass

from lorry.api.adapter_schema import MAX_DESCRIPTION
from lorry.api.uploads import Form

FIELDS = ("scale", "enabled", "pinned", "description", "replace")
"""Fields of a form, beside the name and the files."""

_TRUTH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class State:
    """The state that comes with an upload; None keeps a value or takes the default."""

    scale: float | None = None
    enabled: bool | None = None
    pinned: bool | None = None
    description: str | None = None
    replace: bool = False


def state_of(form: Form) -> State:
    """Read the form's fields beside the name and the files; errors are added to its problems."""
    fields, problems = form.fields, form.problems
    for name in fields:
        if name not in FIELDS:
            problems.append(f"unknown field {name[:80]}")
    truths: dict[str, bool | None] = {}
    for name in ("enabled", "pinned", "replace"):
        given = fields.get(name)
        truths[name] = None if given is None else _TRUTH.get(given.strip().lower())
        if given is not None and truths[name] is None:
            problems.append(f"{name} must be true or false, not {given[:40]!r}")
    scale = None
    if "scale" in fields:
        try:
            scale = float(fields["scale"])
        except ValueError:
            problems.append(f"scale must be a number, not {fields['scale'][:40]!r}")
    return State(
        scale=scale,
        enabled=truths["enabled"],
        pinned=truths["pinned"],
        description=_description(form),
        replace=bool(truths["replace"]),
    )


def _description(form: Form) -> str | None:
    text = form.fields.get("description")
    if text is not None and len(text) > MAX_DESCRIPTION:
        form.problems.append(f"description must have at most {MAX_DESCRIPTION} characters")
    return text
