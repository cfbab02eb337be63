"""Finds and describes the base without reading its weights, for commands that need no server.

The description is of a model on torch's meta device: its modules and their shapes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from lorry.cli.bars import metered
from lorry.configuration import load_settings
from lorry.settings import Settings

if TYPE_CHECKING:
    from lorry.model.base_source import BaseSource
    from lorry_adapters.lora.base import BaseLayout

Home = Annotated[str | None, typer.Option("--home", metavar="PATH", help="As for serve.")]


@dataclass(frozen=True, slots=True)
class Outline:
    """A base without its weights."""

    layout: BaseLayout
    parameters: int
    """Numbers that the model has; a tied one counts once."""


def settings_for(base: str | None, home: str | None, max_lora_rank: str | None = None) -> Settings:
    """As `lorry serve` would have them with these flags."""
    return load_settings({"model": base, "max_lora_rank": max_lora_rank, "home": home}, os.environ)


def find(settings: Settings) -> BaseSource:
    """The base's files, fetched and converted where needed. Raises ModelError."""
    from lorry.model import base_source

    with metered() as (say, meter):
        return base_source.fetch(
            settings.model,
            settings.home,
            revision=settings.revision,
            token=settings.hf_token,
            say=say,
            meter=meter,
        )


def outline(settings: Settings) -> Outline:
    """The base of `settings`, its weights unread. Raises ModelError, UnsupportedModel."""
    import torch
    from transformers import AutoModelForCausalLM

    from lorry.model.base_loader import config_of, described, names_of

    found = find(settings)
    config = config_of(found)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return Outline(
        layout=described(model, found, names_of(settings, found)[0]),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
