"""What the user named -> a local folder with a model in it, checked before anything loads.

An alias, a local folder, a GGUF file or a hub id. From the hub come the config, the
tokenizer and the safetensors, and nothing else: no pickles, and no code.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import httpx
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lorry.errors import ModelError, UnsupportedModel
from lorry.model import first_qwen, gguf, known_bases
from lorry.model.naming import missing_path
from lorry.model.progress import Meter, Say
from lorry.model.store import build_once, models_folder, sha256_of, storage_error
from lorry_adapters.lora.json_text import UTF8, encoding_of

_HUB_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
)


@dataclass(frozen=True, slots=True)
class BaseSource:
    """A model on this machine, ready to load."""

    folder: Path
    name: str
    """The alias, or the last part of what the user gave."""
    given: str
    revision: str | None
    """Of a hub model: the commit."""
    repository: str | None = None
    """Its id on the hub, also where it came another way."""


def fetch(
    model: str,
    home: Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    say: Say,
    meter: Meter,
) -> BaseSource:
    """Find `model`, fetching and converting it where needed.

    Raises ModelError where it cannot be had, UnsupportedModel where it holds only
    pickled weights or needs code of its own.
    """
    base = known_bases.find(model)
    path = Path(model).expanduser()
    if base is not None:
        source = BaseSource(
            known_bases.pull(base, home, say, meter), base.alias, model, None, base.repository
        )
    elif path.is_dir():
        source = BaseSource(path.resolve(), path.resolve().name, model, None)
    elif path.is_file():
        source = BaseSource(_converted(path.resolve(), home, say, meter), path.stem, model, None)
    elif (missing := missing_path(model)) is not None:
        raise missing
    else:
        source = _from_hub(model, home, revision, token, say)
    if revision is not None and source.revision is None:
        raise ModelError(f"--revision {revision}: only a model from the hub has revisions")
    check(source.folder, model)
    return source


def check(folder: Path, given: str) -> None:
    """Refuse, by what is in its files, a folder that cannot be loaded safely."""
    file = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{given} holds an adapter, not a base; serve its base and push it: "
            f"`lorry adapters push {given}`"
        )
    try:
        _refuse_marks(folder)
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{given} holds no model: {file} is missing") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise ModelError(f"{file} names no model_type")
    if kind not in CONFIG_MAPPING and kind != first_qwen.MODEL_TYPE:
        if "auto_map" in config:
            raise UnsupportedModel(
                f"{given} ({kind}) needs code from its own repository "
                f"({', '.join(sorted(config['auto_map']))}), which Lorry never runs"
            )
        raise UnsupportedModel(
            f"{given}: transformers {transformers.__version__} knows no model of type {kind}; "
            "a newer release may"
        )
    names = ("model.safetensors", "model.safetensors.index.json")
    if not any((folder / name).is_file() for name in names):
        pickles = sorted(item.name for item in folder.glob("*.bin"))
        if pickles:
            raise UnsupportedModel(
                f"{given} has its weights only as pickles ({pickles[0]}), which can run code and "
                "are never loaded; convert them to safetensors first"
            )
        raise ModelError(f"{given} holds no weights: neither {names[0]} nor {names[1]} is there")


def _refuse_marks(folder: Path) -> None:
    """transformers passes over a generation_config.json that it cannot read, without a word."""
    for file in sorted(folder.glob("*.json")):
        if not any(fnmatch(file.name, pattern) for pattern in _HUB_FILES):
            continue
        with file.open("rb") as stream:
            encoding = encoding_of(stream.read(4))
        if encoding != UTF8:
            raise ModelError(
                f"{file} is {encoding}, which transformers does not read: save it again as "
                "UTF-8 without a mark"
            )


def _converted(file: Path, home: Path, say: Say, meter: Meter) -> Path:
    try:
        if not gguf.is_gguf(file):
            raise ModelError(f"{file} is not a GGUF file; give a folder, a GGUF file or a hub id")
        digest = sha256_of(file, meter)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}") from error
    return build_once(
        known_bases.converted_folder(home, "gguf", digest),
        lambda staging: gguf.convert(file, staging, say, meter),
        source=str(file),
        say=say,
    )


def _from_hub(
    model: str, home: Path, revision: str | None, token: str | None, say: Say
) -> BaseSource:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise ModelError(f"{model!r} is no alias, no file and no hub id (`organisation/name`)")
    say(f"looking for {model} in the hub and its cache")
    at = f" at revision {revision}" if revision else ""
    try:
        folder = snapshot_download(
            model,
            revision=revision,
            token=token,
            cache_dir=models_folder(home),
            allow_patterns=list(_HUB_FILES),
            ignore_patterns=["*/*"],
        )
    except GatedRepoError:
        raise ModelError(
            f"{model} is gated: accept its terms on the hub and give a token in LORRY_HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{model} has no revision {revision}") from None
    except RepositoryNotFoundError:
        known = ", ".join(base.alias for base in known_bases.KNOWN)
        raise ModelError(
            f"{model} is no alias ({known}), no folder here and no model on the hub; "
            "a private one needs a token in LORRY_HF_TOKEN"
        ) from None
    except HFValidationError as error:
        raise ModelError(f"{model!r} is no hub id: {error}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError) as error:
        known = ", ".join(base.alias for base in known_bases.KNOWN)
        raise ModelError(
            f"{model}{at} is no alias ({known}) and no folder here, it is not in the cache, and "
            f"the hub cannot be reached: {str(error).splitlines()[0]}"
        ) from error
    except OSError as error:
        raise storage_error(error, models_folder(home)) from error
    return BaseSource(Path(folder), model.rpartition("/")[2], model, Path(folder).name, model)
