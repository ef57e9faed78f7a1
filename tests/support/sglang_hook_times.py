"""How long the plugin's hooks take in a scheduler that runs, each step by itself.

Invariant: a hook's time is what its function takes less what SGLang's own function inside it takes, and less what
reading the clock takes. The clock is the one that is cheap to read: asking for a thread's CPU time takes longer than a
hook. Runs with SGLang's interpreter, where a test has asked for it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from sglang_changes import after_import

WRITTEN_EVERY = 100


class HookTimes:
    """Sums up hooks of a step by its kind, and writes the sums down now and then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spent = self._calls = 0
        self._steps: dict[str, list[float]] = {}
        self._kind = ""
        self._clock_nanoseconds = 0.0
        self._clock_nanoseconds = self._cost_of_nothing()

    def of(self, function: Callable[..., Any], *, around: bool) -> Callable[..., Any]:
        """The same hook, timed."""
        clock = time.perf_counter_ns

        def hook(*given: Any, **named: Any) -> Any:
            inside = 0

            def original(*arguments: Any, **keywords: Any) -> Any:
                nonlocal inside
                began = clock()
                try:
                    return given[0](*arguments, **keywords)
                finally:
                    inside += clock() - began

            shown = (original, *given[1:]) if around else given
            began = clock()
            try:
                return function(*shown, **named)
            finally:
                self._spent += clock() - began - inside
                self._calls += 1

        return hook

    def step_begins(self, kind: str) -> None:
        """What was spent since the last one belongs to that step, with the choice of this one."""
        if self._kind:
            steps = self._steps.setdefault(self._kind, [])
            steps.append((self._spent - self._calls * self._clock_nanoseconds) / 1e3)
            if len(steps) % WRITTEN_EVERY == 0:
                self._path.write_text(json.dumps(self._steps))
        self._kind, self._spent, self._calls = kind, 0, 0

    def _cost_of_nothing(self) -> float:
        nothing = self.of(lambda original: original(), around=True)
        costs = []
        for _ in range(2000):
            self._spent = 0
            nothing(lambda: None)
            costs.append(self._spent)
        return statistics.median(costs)


def time_hooks(path: str) -> None:
    """Let the hooks of this process's scheduler be timed; microseconds of each step go to the file, by its kind."""

    def change(module: ModuleType) -> None:
        register = module.HookTable.register

        def registered(table: Any, hooks: Any, hand_over: Callable[[Any], None]) -> None:
            hooks = list(hooks)
            if not any(hook.process is module.Process.SCHEDULER for hook in hooks):
                register(table, hooks, hand_over)
                return
            times = HookTimes(Path(path))

            def timed(hook: Any) -> None:
                function = times.of(hook.function, around=hook.kind is module.Kind.AROUND)
                if hook.target.endswith(".run_batch"):
                    function = _with_begin(times, function)
                hand_over(replace(hook, function=function))

            register(table, hooks, timed)

        module.HookTable.register = registered

    after_import("duet_engine.plugin.hooks", change)


def _with_begin(times: HookTimes, function: Callable[..., Any]) -> Callable[..., Any]:
    def hook(original: Any, scheduler: Any, batch: Any, *given: Any, **named: Any) -> Any:
        times.step_begins(batch.forward_mode.name.lower())
        return function(original, scheduler, batch, *given, **named)

    return hook
