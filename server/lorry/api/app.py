"""The HTTP application: connects the routes with their services. Made by `create_app`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from transformers import PreTrainedTokenizerFast
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

import lorry
from lorry.access.access_control import AccessControl
from lorry.api import docs, errors, page
from lorry.api.adapter_schema import (
    LoadBody,
    PatchBody,
    RecoverBody,
    SourceBody,
    UnloadBody,
    UploadForm,
    VersionForm,
)
from lorry.api.adapters import Adapters
from lorry.api.anthropic import COUNT, Messages
from lorry.api.anthropic_schema import CountBody, MessageEvent, MessagesBody
from lorry.api.audit_routes import AuditRoutes
from lorry.api.auth import Guard
from lorry.api.calls.choice import NOTATIONS
from lorry.api.chat import Chat
from lorry.api.chat_schema import ChatBody, ChatChunk
from lorry.api.classify import Classify, ClassifyBody
from lorry.api.completions import Completions
from lorry.api.completions_schema import CompletionsBody
from lorry.api.door import Door
from lorry.api.embeddings import Embeddings, EmbeddingsBody
from lorry.api.features import Features, FeaturesBody
from lorry.api.generate import Generate
from lorry.api.generate_schema import GenerateBody, StreamEvent
from lorry.api.health import Health
from lorry.api.hosts import Hosts
from lorry.api.journal import Journal
from lorry.api.key_routes import KeyRoutes
from lorry.api.key_schema import KeyBody, KeyPatchBody, RotateBody
from lorry.api.leftovers import Leftovers
from lorry.api.methods import Head
from lorry.api.models import Models
from lorry.api.openai import OpenAI
from lorry.api.origins import Origins, Sharing
from lorry.api.prefix import Prefix, check_root_path
from lorry.api.prompts import Prompts
from lorry.api.reasoning import choice_of
from lorry.api.remarks import Remarking
from lorry.api.request_id import RequestId
from lorry.api.residencies import Residencies
from lorry.api.resolving import Resolving
from lorry.api.response_store import ResponseStore
from lorry.api.responses import Responses
from lorry.api.responses_schema import ResponseEvent, ResponsesBody
from lorry.api.route_scopes import METRICS, OPEN_PATHS, check_complete
from lorry.api.runs import Runs
from lorry.api.scores import RerankBody, ScoreBody, Scores
from lorry.api.selection import BaseNames
from lorry.api.tokens import DetokenizeBody, TokenizeBody, Tokens
from lorry.api.tool_prompt import ToolPrompt
from lorry.api.unclaimed import Unclaimed
from lorry.api.vectors import Pooled
from lorry.api.vllm_lora import VllmLora
from lorry.api.voices import Voice, Voices
from lorry.core import Base
from lorry.engine.client import EngineClient
from lorry.fetch.allowed import Allowed
from lorry.fetch.download import Downloader
from lorry.fetch.fetcher import Fetcher
from lorry.metrics import Metrics
from lorry.scrape import EngineNumbers, Sources
from lorry.settings import Settings
from lorry_adapters.registry.registry import Registry

_BODIES = (
    GenerateBody,
    FeaturesBody,
    TokenizeBody,
    DetokenizeBody,
    ScoreBody,
    RerankBody,
    StreamEvent,
    CompletionsBody,
    ChatBody,
    ChatChunk,
    ResponsesBody,
    ResponseEvent,
    MessagesBody,
    CountBody,
    MessageEvent,
    ClassifyBody,
    EmbeddingsBody,
    SourceBody,
    PatchBody,
    RecoverBody,
    UploadForm,
    VersionForm,
    LoadBody,
    UnloadBody,
    KeyBody,
    KeyPatchBody,
    RotateBody,
)


_ASKS_NOTHING = frozenset({"/tokenize", "/detokenize", "/tokenizer_info", COUNT})
"""Routes that ask nothing of the engine, although others of their routers do."""


HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Services:
    """The services behind the routes."""

    client: EngineClient
    registry: Registry
    tokenizer: PreTrainedTokenizerFast
    settings: Settings
    metrics: Metrics
    base: Base
    access: AccessControl
    give_back: Callable[[], None] = lambda: None
    """Returns freed memory to the system. Blocks."""
    watched: Callable[[], Mapping[str, str]] | None = None
    """Returns the problems of the watched folder, if there is one, by name."""
    engines: Callable[[], Sequence[EngineNumbers]] | None = None
    """Returns the numbers of each engine, if there are several."""


def create_app(services: Services) -> FastAPI:
    """Return the application of one server. It owns nothing that must be closed."""
    client, registry, metrics = services.client, services.registry, services.metrics
    app = FastAPI(
        title="Lorry",
        version=lorry.__version__,
        description="One quantized base model and many LoRA adapters, every mix in one batch.",
        # `docs` serves them, and `errors` the redirects: both support a proxy's prefix.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    metrics.watch(
        Sources(
            engines=services.engines
            or (
                lambda: [
                    EngineNumbers(client.stats, registry.host_cache_stats(), registry.in_host_cache)
                ]
            ),
            records=registry.records,
            why_broken=registry.why_broken,
            ready=lambda: client.ready and registry.storage.trouble() is None,
            max_num_seqs=services.settings.max_num_seqs,
            max_queue=services.settings.max_queue,
            catalog_answers=lambda: registry.storage.catalog_answers(),
            store=lambda: registry.storage.blobs.store_counts(),
            adapter_limit=services.base.adapter_needs.limit,
        )
    )
    base = BaseNames(services.base.name, services.base.other_names, services.base.repository)
    prompts = Prompts(
        services.tokenizer,
        services.base.vocab_size,
        tool_prompt=ToolPrompt(services.settings.tool_prompt),
        notation=NOTATIONS.get(services.settings.tool_parser),
        thoughts=choice_of(services.settings.reasoning_parser),
    )
    voices = Voices(
        Voice(prompts, services.base.eos_token_ids),
        services.tokenizer,
        registry,
        use=services.settings.adapter_templates == "use",
    )
    runs = Runs(client, prompts, metrics)
    pooled = Pooled(client, metrics)
    openai = OpenAI(
        voice=voices.base,
        voices=voices,
        runs=runs,
        metrics=metrics,
        registry=registry,
        base=base,
        fingerprint=f"lorry-{lorry.__version__}-{services.base.name}-{services.base.quantization}",
        clip=services.settings.beyond_context == "clip",
    )
    adapters = Adapters(
        registry=registry,
        metrics=metrics,
        residencies=Residencies(lambda: client.stats, registry.in_host_cache),
        voices=voices,
        max_upload=services.settings.max_upload,
        fetcher=_fetcher(services.settings),
        hub_endpoint=hub_endpoint(services.settings),
        watched=services.watched,
        base_parameters=services.base.about["parameters"],
    )
    if services.settings.adapter_resolvers:
        resolvers, retry = services.settings.adapter_resolvers, services.settings.resolve_retry
        app.state.resolving = Resolving(registry, adapters, base, resolvers, retry)
    features = Features(voices=voices, pooled=pooled)
    generate = Generate(
        features=features,
        voices=voices,
        runs=runs,
        metrics=metrics,
        registry=registry,
    )
    models = Models(
        registry=registry,
        base=base,
        base_source=services.settings.model,
        max_model_len=services.base.max_model_len,
        started=datetime.now(UTC),
    )
    health = Health(
        ready=lambda: client.ready,
        trouble=lambda: registry.storage.trouble(),
        warning=lambda: registry.storage.warning(),
        about=services.base.about,
        stats=lambda: client.stats,
        metrics=metrics,
        settings=services.settings,
        max_model_len=services.base.max_model_len,
    )
    settings = services.settings
    chat = Chat(openai, own_templates=settings.trust_request_chat_template)
    asking = (
        generate,
        features,
        Tokens(
            voices=voices,
            chat=chat,
            registry=registry,
            base=base,
            max_model_len=services.base.max_model_len,
            tokenizer=services.tokenizer,
        ),
        Completions(openai),
        chat,
        Responses(openai, chat, ResponseStore(settings.responses_memory, settings.keep_responses)),
        Messages(openai, chat),
        Classify(voices=voices, pooled=pooled),
        Scores(voices=voices, pooled=pooled, registry=registry, base=base),
        Embeddings(voices=voices, pooled=pooled, registry=registry, base=base),
    )
    errors.install(app, metrics)
    paths: set[str] = set()
    routes: set[str] = set()
    for room in asking:
        router = room.router()
        paths |= _paths(router)
        routes |= _routes(router)
        app.include_router(router)
    own = paths | set(docs.PATHS)
    if settings.ui == "on":
        page.install(app)
        own.add(page.FILES)
    app.add_middleware(Door, client=client, paths=paths - _ASKS_NOTHING, metrics=metrics)
    for other in (
        models,
        adapters,
        Unclaimed(registry=registry, adapters=adapters),
        VllmLora(registry=registry, adapters=adapters, metrics=metrics),
        KeyRoutes(services.access),
        AuditRoutes(services.access),
        health,
    ):
        router = other.router()
        own |= _paths(router)
        routes |= _routes(router)
        app.include_router(router)
    check_complete(routes)
    open_paths = {*OPEN_PATHS, *(() if services.access.keyring.has_stored else (METRICS,))}
    docs.install(app, _BODIES, keyed=services.access.keyring.asks, open_paths=open_paths)
    app.add_middleware(Remarking, strict=settings.unknown_fields == "refuse")
    origins = Origins(settings.allowed_origins)
    app.add_middleware(Head)
    app.add_middleware(
        Guard,
        hosts=Hosts(settings.allowed_hosts, bound=settings.host),
        origins=origins,
        access=services.access,
        metrics=metrics,
    )
    app.add_middleware(Sharing, origins=origins)
    app.add_middleware(Leftovers, give_back=services.give_back)
    app.add_middleware(Journal)
    if settings.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(settings.trusted_proxies))
    # It checks the connecting peer, before the line above replaces it by the proxy's client.
    check_root_path(settings.root_path, own)
    app.add_middleware(
        Prefix, root_path=settings.root_path, proxies=settings.trusted_proxies, own=own
    )
    app.add_middleware(RequestId)
    return app


def _routes(router: APIRouter) -> set[str]:
    """Return every route as `GET /path`."""
    found = [route for route in router.routes if isinstance(route, APIRoute)]
    return {f"{method} {route.path}" for route in found for method in route.methods or ()}


def _fetcher(settings: Settings) -> Fetcher:
    allowed = Allowed.of(settings.adapter_sources)
    return Fetcher(
        allowed,
        Downloader(allowed),
        max_upload=settings.max_upload,
        timeout=settings.fetch_timeout,
        hub_token=settings.hf_token,
    )


def hub_endpoint(settings: Settings) -> str:
    return settings.hub_endpoint or os.environ.get("HF_ENDPOINT") or HUB


def _paths(router: APIRouter) -> set[str]:
    return {route.path for route in router.routes if isinstance(route, APIRoute)}
