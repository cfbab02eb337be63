"""All errors of the server, except those about adapters.

    LorryError
    ├── SettingsError           a flag, variable or key with a bad value; named
    ├── ModelError              the base cannot be found, read or verified
    │   └── UnsupportedModel    it can be read, but not served correctly
    ├── TrainingError           a training run's data, settings or state
    └── RequestError            one request, refused; `param` names the field
        ├── InvalidRequest      a value that makes no sense
        ├── HeaderMismatch      `X-Lorry-Adapter` names another adapter than the body
        ├── UnsupportedParameter a field of other servers that is not served here
        ├── ModelNotFound       `model` names neither the base nor an adapter
        ├── PromptTooLong       prompt and answer exceed the model's length
        ├── InvocationMissing   the prompt does not call an activated LoRA
        ├── DoesNotFit          needs more KV cache, or slots, than the server has
        ├── SourceFailed        an adapter's source is unreachable, slow, or answers an error
        ├── ScopeMissing        the key is not for such requests
        ├── ForbiddenAdapter    the key may not have an adapter of that name
        ├── KeyLimitExceeded    more than the key allows, now and later
        ├── RateLimited         more than the key allows at a time; carries `retry_after`
        ├── KeyNotFound         no key has that name
        ├── KeyConflict         the name is taken, or nobody could manage keys any more
        ├── QueueFull           try again later; carries `retry_after` seconds
        ├── ShuttingDown        the server is finishing what it has
        └── GenerationFailed    the step that ran this request raised

The adapters' own tree is in `lorry_adapters.errors`. A message says what is wrong, where, and what
to do. The engine's messages name a remedy instead, as it knows neither routes nor commands
(`lorry.advice`). Status codes are in one table, `lorry.api.errors`.
"""

from __future__ import annotations

from enum import StrEnum


class EngineRemedy(StrEnum):
    """Remedies for requests that the engine refuses, like `lorry_adapters.errors.Remedy`."""

    MORE_CACHE = "more_cache"
    """More memory for keys and values."""
    MORE_SLOTS = "more_slots"
    """More device slots for adapters."""
    ASK_FOR_LABELS = "ask_for_labels"
    """The adapter is a classifier."""
    ASK_FOR_VECTORS = "ask_for_vectors"
    """The adapter is for hidden states."""


class LorryError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class SettingsError(LorryError):
    pass


class ModelError(LorryError):
    pass


class UnsupportedModel(ModelError):
    pass


class TrainingError(LorryError):
    pass


class RequestError(LorryError):
    param: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        if param is not None:
            self.param = param


class InvalidRequest(RequestError):
    pass


class HeaderMismatch(RequestError):
    param = "X-Lorry-Adapter"


class UnsupportedParameter(RequestError):
    pass


class ModelNotFound(RequestError):
    param = "model"


class SourceFailed(RequestError):
    param = "source"


class PromptTooLong(RequestError):
    param = "prompt"


class InvocationMissing(RequestError):
    param = "adapter"


class DoesNotFit(RequestError):
    pass


class ScopeMissing(RequestError):
    pass


class ForbiddenAdapter(RequestError):
    param = "name"


class KeyLimitExceeded(RequestError):
    pass


class RateLimited(RequestError):
    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class KeyNotFound(RequestError):
    param = "name"


class KeyConflict(RequestError):
    pass


class QueueFull(RequestError):
    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ShuttingDown(RequestError):
    pass


class GenerationFailed(RequestError):
    pass
