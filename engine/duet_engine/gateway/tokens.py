"""How many tokens a prompt has, before any engine has seen it.

Invariant: a prompt given as token ids is counted exactly; text is estimated from its bytes with a ratio that follows
the token counts that engines report back, recent ones more. Each class has its own, as classes write in languages of
their own; a new one begins with that of all.
"""

from __future__ import annotations

START_BYTES_PER_TOKEN = 4.0
START_WEIGHT_TOKENS = 2_000.0
MEMORY = 0.98
"""Share of the past that one report leaves in place."""


class _Ratio:
    """Bytes per token, learned."""

    __slots__ = ("_bytes", "_tokens")

    def __init__(self, bytes_per_token: float = START_BYTES_PER_TOKEN) -> None:
        self._bytes = START_WEIGHT_TOKENS * bytes_per_token
        self._tokens = START_WEIGHT_TOKENS

    def learn(self, text_bytes: int, prompt_tokens: int) -> None:
        self._bytes = self._bytes * MEMORY + text_bytes
        self._tokens = self._tokens * MEMORY + prompt_tokens

    @property
    def bytes_per_token(self) -> float:
        return self._bytes / self._tokens


class TokenEstimator:
    """Of one gateway process."""

    active = "corrected-bytes"
    """Which counting is in force, for metrics."""

    def __init__(self) -> None:
        self._all = _Ratio()
        self._classes: dict[str, _Ratio] = {}

    @property
    def bytes_per_token(self) -> float:
        """Of all classes together."""
        return self._all.bytes_per_token

    def estimate(self, text_bytes: int, class_name: str = "") -> int:
        """At least one token."""
        ratio = self._classes.get(class_name, self._all)
        return max(1, round(text_bytes / ratio.bytes_per_token))

    def learn(self, *, text_bytes: int, prompt_tokens: int, class_name: str = "") -> None:
        """An engine counted a prompt that was estimated."""
        if text_bytes <= 0 or prompt_tokens <= 0:
            return
        own = self._classes.get(class_name)
        if own is None:
            own = self._classes[class_name] = _Ratio(self._all.bytes_per_token)
        for ratio in (own, self._all):
            ratio.learn(text_bytes, prompt_tokens)
