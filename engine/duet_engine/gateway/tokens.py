"""How many tokens a prompt has, before any engine has seen it.

Invariant: a prompt given as token ids is counted exactly; text is estimated from its bytes with a ratio that follows
the token counts that engines report back, recent ones more.
"""

from __future__ import annotations

START_BYTES_PER_TOKEN = 4.0
START_WEIGHT_TOKENS = 2_000.0
MEMORY = 0.98
"""Share of the past that one report leaves in place."""


class TokenEstimator:
    """Bytes per token, learned."""

    active = "corrected-bytes"
    """Which counting is in force, for metrics."""

    def __init__(self) -> None:
        self._bytes = START_WEIGHT_TOKENS * START_BYTES_PER_TOKEN
        self._tokens = START_WEIGHT_TOKENS

    @property
    def bytes_per_token(self) -> float:
        return self._bytes / self._tokens

    def estimate(self, text_bytes: int) -> int:
        """At least one token."""
        return max(1, round(text_bytes / self.bytes_per_token))

    def learn(self, *, text_bytes: int, prompt_tokens: int) -> None:
        """An engine counted a prompt that was estimated."""
        if text_bytes <= 0 or prompt_tokens <= 0:
            return
        self._bytes = self._bytes * MEMORY + text_bytes
        self._tokens = self._tokens * MEMORY + prompt_tokens
