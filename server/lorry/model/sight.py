"""How far back an attention layer sees, by the mask that transformers makes for it.

Most layers see all that came before; some the last tokens only (a sliding window), some
what came since the start of a chunk (Llama 4). Modeling code says which by the mask that
it has transformers make. The `sliding_window` that goes to attention beside it is for
kernels that take no masks, and some classes leave it out (PhiMoE, Qwen2-MoE). So in the
very first forward pass a mask is made, and the rule behind it is tried at the positions
around its limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import eager_mask

from lorry.errors import UnsupportedModel

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""transformers' mask functions: (batch, head, query's position, key's) -> may it be seen?"""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a token sees: itself, and before it everything, where nothing here says less."""

    window: int | None = None
    """Last tokens, its own included."""
    chunk: int | None = None
    """Tokens of a chunk; those of the chunks before are not seen."""

    def begin(self, position: int) -> int:
        """The first position that a token at `position` sees."""
        begin = 0 if self.window is None else max(0, position + 1 - self.window)
        return begin if self.chunk is None else max(begin, position // self.chunk * self.chunk)

    def mask(self, positions_T: Tensor, length: int) -> Tensor:
        """bool `[T, length]`, True where the token at each position sees the key."""
        keys_L = torch.arange(length, device=positions_T.device)
        positions_T1 = positions_T.unsqueeze(1)
        seen_TL = keys_L <= positions_T1
        if self.window is not None:
            seen_TL &= keys_L > positions_T1 - self.window
        if self.chunk is not None:
            seen_TL &= keys_L >= positions_T1 // self.chunk * self.chunk
        return seen_TL


EVERYTHING = Sight()


@dataclass(slots=True)
class Masks:
    """The masks of one forward pass, and what each allows."""

    longest: int
    """Tokens of a sequence, at most."""
    _made: list[tuple[Tensor, Sight | None]] = field(default_factory=list)

    def make(self, *, mask_function: Rule, local_size: int | None = None, **more: Any) -> Tensor:
        """transformers' interface for masks."""
        mask: Tensor = eager_mask(mask_function=mask_function, **more)
        self._made.append((mask, _sight(mask_function, local_size, self.longest, mask.device)))
        return mask

    def sight(self, module: nn.Module, mask: Tensor | None) -> Sight:
        """What `mask`, which `module` attends by, allows.

        Raises:
            UnsupportedModel: it is not one that a packed row could have.
        """
        name = type(module).__name__
        if mask is None:
            raise UnsupportedModel(f"{name} attends without a mask")
        for made, sight in self._made:
            if made is mask:
                if sight is None:
                    raise UnsupportedModel(f"{name} does not see just the last tokens or all")
                return sight
        raise UnsupportedModel(f"{name} attends by a mask of its own")


def _sight(rule: Rule, size: int | None, longest: int, device: torch.device) -> Sight | None:
    """`size`: of the window or chunk; None where there is none. What `rule` allows; None
    where it is neither of these."""
    edges = () if size is None else (size, 2 * size)
    near = {0, 1, longest - 1, *(edge + beside for edge in edges for beside in (-1, 0, 1))}
    candidates = [EVERYTHING]
    if size:
        candidates += [Sight(window=size), Sight(chunk=size)]
    for position in sorted(at for at in near if 0 <= at < longest):
        # Two tokens beyond it, which must not be seen.
        length = position + 3
        seen_L = _asked(rule, position, length, device)
        if seen_L is None:
            return None
        at = torch.tensor([position], device=device)
        candidates = [one for one in candidates if one.mask(at, length)[0].equal(seen_L)]
    return candidates[0] if candidates else None


def _asked(rule: Rule, position: int, length: int, device: torch.device) -> Tensor | None:
    zero = torch.zeros((), dtype=torch.int64, device=device)
    keys_L = torch.arange(length, device=device)
    try:
        return rule(zero, zero, zero + position, keys_L).expand(length)
    except (IndexError, RuntimeError):
        # It looks something up that was made for this forward pass's few tokens.
        return None
