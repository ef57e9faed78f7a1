"""How far each step is off the model: a stream of factors and stalls for each worker.

Invariant: the n-th step of a worker has the same noise however many steps were drawn together and given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from duet_engine.simulator.scenario import StepNoise

_BLOCK = 512


class StepClock(Protocol):
    """Turns what the model says of the next steps into what they take: model · factor + stall for each."""

    def take(self, steps: int) -> tuple[list[float], list[float] | None]:
        """Factors and stalls of the next steps; None: no stalls."""
        ...

    def give_back(self, steps: int) -> None:
        """The last ones weren't needed."""
        ...


def next_step(clock: StepClock) -> tuple[float, float]:
    """Factor and stall of one step."""
    factors, stalls = clock.take(1)
    return factors[0], stalls[0] if stalls else 0.0


class NoiseStream:
    """Random factors of mean 1, and stalls."""

    __slots__ = ("_factors", "_noise", "_position", "_random", "_stalled", "_stalls")

    def __init__(self, noise: StepNoise, *, seed: int, worker: int) -> None:
        self._noise = noise
        self._random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, worker])))
        self._factors: list[float] = []
        self._stalls: list[float] = []
        self._stalled = False
        """Whether there is any among those that are drawn."""
        self._position = 0

    def take(self, steps: int) -> tuple[list[float], list[float] | None]:
        end = self._position + steps
        if end > len(self._factors):
            self._refill(steps)
            end = self._position + steps
        start, self._position = self._position, end
        return self._factors[start:end], self._stalls[start:end] if self._stalled else None

    def give_back(self, steps: int) -> None:
        self._position -= steps

    def _refill(self, steps: int) -> None:
        """Keep what is left and a little of what was taken, which may yet be given back."""
        kept = max(0, self._position - _BLOCK)
        del self._factors[:kept], self._stalls[:kept]
        self._position -= kept
        while self._position + steps > len(self._factors):
            self._append_block()
        self._stalled = any(self._stalls)

    def _append_block(self) -> None:
        noise, spread = self._noise, self._noise.relative_spread
        if spread:
            self._factors += self._random.lognormal(-spread * spread / 2, spread, _BLOCK).tolist()
        else:
            self._factors += [1.0] * _BLOCK
        if noise.stall_probability:
            stalled = self._random.random(_BLOCK) < noise.stall_probability
            self._stalls += (stalled * noise.stall_seconds).tolist()
        else:
            self._stalls += [0.0] * _BLOCK
