"""Hooks into SGLang, each tied to the very source it was written for.

Invariant: a hook is applied only where its target has the recorded source, so that another SGLang can't be changed in
a way that nobody has read; and a hook counts as active only once the target is seen to be ours.
"""

from __future__ import annotations

import hashlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from duet_engine.protocol import HookStatus

ROOT = "sglang.srt."


class Process(StrEnum):
    """The processes of an engine, by what they do."""

    SERVER = "server"
    """HTTP and tokenizer: the process that was started."""
    SCHEDULER = "scheduler"
    """One for each rank."""
    DETOKENIZER = "detokenizer"


class Kind(StrEnum):
    """How SGLang's registry calls a hook; the values are its own names."""

    BEFORE = "before"
    """`hook(*arguments)`; may return (arguments, keywords) to change them."""
    AFTER = "after"
    """`hook(result, *arguments)`; may return another result."""
    AROUND = "around"
    """`hook(original, *arguments)` in place of the original."""
    REPLACE = "replace"
    """The hook alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One change to one function of SGLang, in one kind of process."""

    target: str
    """Dotted path below `sglang.srt`, such as `managers.scheduler.Scheduler.run_batch`."""
    digest: str
    """Of the target's source in the supported version; `python -m duet_engine.plugin.digests` prints it."""
    function: Callable[..., Any]
    process: Process
    kind: Kind = Kind.AROUND

    @property
    def path(self) -> str:
        return ROOT + self.target


def source_digest(target: Callable[..., Any]) -> str:
    """Short digest of a function's source, decorators included."""
    return hashlib.sha256(inspect.getsource(inspect.unwrap(target)).encode()).hexdigest()[:12]


@dataclass(slots=True)
class HookTable:
    """The hooks of this process: registered, refused, and later seen to be active."""

    _registered: list[Hook] = field(default_factory=list)
    _originals: dict[str, Any] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict)

    def register(self, hooks: Iterable[Hook], register: Callable[[Hook], None]) -> None:
        """Hand each hook whose target is as recorded to `register`; note why another isn't."""
        for hook in hooks:
            try:
                target = pkgutil.resolve_name(hook.path)
                found = source_digest(target)
            except (AttributeError, ImportError, OSError, TypeError) as error:
                self._refused[hook.path] = f"not found: {error}"
                continue
            if found != hook.digest:
                self._refused[hook.path] = f"its source is another: digest {found}, expected {hook.digest}"
                continue
            self._originals.setdefault(hook.path, target)
            self._registered.append(hook)
            register(hook)

    def statuses(self) -> tuple[HookStatus, ...]:
        """Each hook's target as it is now."""
        refused = [HookStatus(target=path, active=False, reason=reason) for path, reason in self._refused.items()]
        return (*refused, *(self._status(path) for path in dict.fromkeys(hook.path for hook in self._registered)))

    def _status(self, path: str) -> HookStatus:
        present, original = pkgutil.resolve_name(path), self._originals[path]
        wrapped = inspect.unwrap(present, stop=lambda layer: layer is original)
        ours = present is not original and wrapped is original
        return HookStatus(target=path, active=ours, reason=None if ours else "registered, and not in force")
