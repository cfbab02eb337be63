"""Bodies and answers of `/adapters`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from lorry.advice import advised
from lorry.api.bodies import Body
from lorry.api.inspections import InspectionView
from lorry_adapters.registry.names import NAME
from lorry_adapters.registry.record import MAX_SCALE, VersionRecord

# The registry checks the scale's type and range: one rule, one message.
Scale = Annotated[
    Any,
    WithJsonSchema(
        {
            "title": "Scale",
            "anyOf": [
                {"type": "number", "minimum": -MAX_SCALE, "maximum": MAX_SCALE},
                {"type": "null"},
            ],
        }
    ),
]

# The registry checks the name, like the scale.
Name = Annotated[str, Field(json_schema_extra={"pattern": f"^{NAME.pattern}$"})]

# JSON has no other keys than strings. No version has more than 18 digits.
Weights = Annotated[
    dict[Annotated[str, Field(pattern="^[0-9]{1,18}$")], int],
    Field(json_schema_extra={"additionalProperties": False}),
]

MAX_DESCRIPTION = 10_000
"""Characters."""

Description = Annotated[str, Field(max_length=MAX_DESCRIPTION)]


class SourceBody(Body):
    """An adapter that the server reads or fetches itself."""

    name: Name
    source: str = Field(
        description="A PEFT folder by its absolute path under one of `--adapter-roots`; or, from "
        "one of `--adapter-sources`, the https, s3 or gs URL of a PEFT folder or of a zip, tar or "
        "tar.gz of one, or a hub id: org/name, org/name@revision or org/name@revision/folder.",
        json_schema_extra={
            "pattern": r"^(/|[fF][iI][lL][eE]:///|[hH][tT][tT][pP][sS]://|[sS]3://|[gG][sS]://"
            r"|([hH][fF]://)?[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_])"
        },
    )
    scale: Scale = None
    enabled: bool | None = None
    pinned: bool | None = None
    description: Description | None = None
    replace: bool | None = None


class PatchBody(Body):
    """The changes; fields that are null or absent stay as they are."""

    enabled: bool | None = None
    scale: Scale = None
    pinned: bool | None = None
    description: Description | None = None
    version: int | None = Field(
        default=None, description="Made current; it ends a split. Of an alias: what it means."
    )
    split: Weights | None = Field(
        default=None,
        description="Weights by version, for a trial. The version with the largest weight becomes "
        "current unless `version` is given, too. Empty: the trial ends.",
    )
    aliases: dict[str, int | Weights | None] | None = Field(
        default=None,
        description="By name: a version, weights by version, or null, which removes the alias. "
        "Other aliases stay.",
    )
    keep_versions: int | Literal["default"] | None = Field(
        default=None, description="How many of the newest versions are kept; 0 keeps all."
    )
    keep_days: float | Literal["default"] | None = Field(
        default=None, description="How long versions are kept; 0 is for ever."
    )


class VersionView(BaseModel):
    version: int
    digest: str
    peft_type: str
    rank: int
    target_modules: list[str]
    parameters: int
    bytes: int
    base_model: str | None
    task_type: str
    virtual_tokens: int = Field(description="Positions that it takes before a prompt")
    invocation: list[int] = Field(description="Tokens that activate it in a prompt, if any")
    scalable: bool = Field(description="false: only the scales 0 and 1")
    warnings: list[str] = Field(description="Things that were accepted but may be mistakes")
    words: list[str] = Field(description="Text that it brings, such as chat_template")
    created_at: str


class FetchView(BaseModel):
    state: str = Field(description="fetching or verifying")
    source: str
    bytes: int = Field(description="Bytes that have arrived")
    total: int | None = Field(description="Bytes that are announced so far; null if unknown")


class AdapterView(BaseModel):
    name: str
    version: int
    digest: str
    enabled: bool
    scale: float
    pinned: bool
    description: str
    peft_type: str
    rank: int
    target_modules: list[str]
    parameters: int
    bytes: int
    base_model: str | None
    task_type: str
    virtual_tokens: int
    invocation: list[int]
    scalable: bool
    warnings: list[str]
    words: list[str]
    words_left_out: list[str] | None = Field(
        default=None,
        description="Words that are not used, and why; not in lists",
    )
    inspection: InspectionView | None = Field(
        default=None, description="With `?inspect=true` alone"
    )
    residency: str = Field(description="device, host or disk: where the weights are")
    broken: str | None = Field(description="Why it cannot be served; null if it can")
    fetch: FetchView | None = Field(description="A new version that is being fetched, if any")
    created_at: str
    updated_at: str
    versions: list[VersionView]
    split: dict[str, int] = Field(
        description="Weights by version; empty if the name means the current version"
    )
    aliases: dict[str, int | dict[str, int]] = Field(
        description="Other names: a version, or weights by version"
    )
    alias: str | None = Field(
        default=None, description="The alias that was asked for, whose version this is"
    )
    keep_versions: int | None = Field(description="null: the server's default")
    keep_days: float | None = Field(description="null: the server's default")


class FetchingView(BaseModel):
    """An adapter that does not exist yet, while it is fetched."""

    name: str
    fetch: FetchView


class AdapterList(BaseModel):
    adapters: list[AdapterView]
    watch_problems: dict[str, str] | None = Field(
        default=None,
        description="With `--watch-adapters`: folders there that are no adapters as they are, and "
        "why; `.` is the watched folder",
    )


class UnclaimedView(BaseModel):
    digest: str
    bytes: int
    since: str | None = Field(
        description="When a start first saw that no adapter has them; null: only in the store"
    )
    kept_until: str | None = Field(
        description="The first start after this time may delete them; null: nothing deletes them"
    )


class UnclaimedList(BaseModel):
    unclaimed: list[UnclaimedView]


class RecoverBody(Body):
    """Stored files, and the adapter's name; by default it comes from the digest."""

    digest: str
    name: str | None = None


class VersionForm(BaseModel):
    """`file`, or the two files under their own names."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["file"]},
                {"required": ["adapter_config.json", "adapter_model.safetensors"]},
            ]
        }
    )

    name: str | None = Field(default=None, description="If given, the same as in the path.")
    file: str | None = Field(
        default=None,
        description="zip, tar or tar.gz of a PEFT folder",
        json_schema_extra={"format": "binary"},
    )
    adapter_config_json: str | None = Field(
        default=None, alias="adapter_config.json", json_schema_extra={"format": "binary"}
    )
    adapter_model_safetensors: str | None = Field(
        default=None, alias="adapter_model.safetensors", json_schema_extra={"format": "binary"}
    )


class UploadForm(VersionForm):
    name: Name
    scale: float | None = Field(default=None, ge=-MAX_SCALE, le=MAX_SCALE)
    enabled: bool | None = None
    pinned: bool | None = None
    description: str | None = Field(default=None, max_length=MAX_DESCRIPTION)
    replace: bool | None = None


class LoadBody(Body):
    """The body of vLLM's route."""

    model_config = ConfigDict(json_schema_extra={"required": ["lora_name", "lora_path"]})

    lora_name: str | None = None
    lora_path: str | None = None
    load_inplace: bool | None = None
    base_model_name: str | None = None
    is_3d_lora_weight: bool | None = None


class UnloadBody(Body):
    """The body of vLLM's route."""

    model_config = ConfigDict(json_schema_extra={"required": ["lora_name"]})

    lora_name: str | None = None
    lora_int_id: int | None = None


def version_view(version: VersionRecord) -> dict[str, Any]:
    """Return a version as `VersionView` describes it."""
    return {
        "version": version.version,
        "digest": version.digest,
        "peft_type": version.peft_type,
        "rank": version.rank,
        "target_modules": list(version.target_modules),
        "parameters": version.parameters,
        "bytes": version.bytes,
        "base_model": version.base_model,
        "task_type": version.task_type,
        "virtual_tokens": version.virtual_tokens,
        "invocation": list(version.invocation),
        "scalable": version.scalable,
        "warnings": [advised(warning) for warning in version.warnings],
        "words": list(version.words),
        "created_at": version.created_at.isoformat(),
    }


def weights_of(split: Mapping[str, int] | None) -> dict[int, int] | None:
    """Return weights by version as numbers."""
    return None if split is None else {int(version): split[version] for version in split}


def meanings_of(
    aliases: Mapping[str, int | dict[str, int] | None] | None,
) -> dict[str, int | Mapping[int, int] | None] | None:
    """Return what aliases mean, with numbers as versions."""
    if aliases is None:
        return None
    return {
        name: weights_of(one) if isinstance(one, dict) else one for name, one in aliases.items()
    }
