"""Hooks: applied only where the source is the one they were written for, active only when seen to be."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from duet_engine.plugin.hooks import Hook, HookTable, Process, source_digest

NAME = "sglang.srt.target_for_a_test"


def step(batch: int) -> int:
    """What a hook is put on."""
    return batch + 1


@pytest.fixture
def sglang_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module at SGLang's place, with one function."""
    parents: list[str] = []
    for part in NAME.split(".")[:-1]:
        parents.append(part)
        package = ModuleType(".".join(parents))
        package.__path__ = []
        monkeypatch.setitem(sys.modules, package.__name__, package)
    module = ModuleType(NAME)
    module.step = step  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, NAME, module)
    yield module


def hook(*, digest: str, target: str = "target_for_a_test.step") -> Hook:
    return Hook(
        target=target, digest=digest, function=lambda original, batch: original(batch), process=Process.SCHEDULER
    )


def apply(module: ModuleType) -> Callable[[Hook], None]:
    """As SGLang's registry does it."""

    def put(wanted: Hook) -> None:
        original = module.step

        @functools.wraps(original)
        def wrapper(*arguments: Any) -> Any:
            return wanted.function(original, *arguments)

        module.step = wrapper  # type: ignore[attr-defined]

    return put


def test_a_hook_on_the_recorded_source_is_applied_and_active(sglang_module: ModuleType) -> None:
    table = HookTable()
    table.register([hook(digest=source_digest(step))], apply(sglang_module))
    (status,) = table.statuses()
    assert (status.active, status.reason) == (True, None)
    assert sglang_module.step(1) == 2


def test_another_source_is_left_alone_and_said(sglang_module: ModuleType) -> None:
    table = HookTable()
    table.register([hook(digest="of another release")], apply(sglang_module))
    (status,) = table.statuses()
    assert not status.active
    assert status.reason is not None
    assert "expected of another release" in status.reason
    assert sglang_module.step is step


def test_a_target_that_is_gone_is_said(sglang_module: ModuleType) -> None:
    table = HookTable()
    table.register([hook(digest="any", target="target_for_a_test.gone")], apply(sglang_module))
    (status,) = table.statuses()
    assert status.reason is not None
    assert status.reason.startswith("not found")


def test_a_registered_hook_that_nobody_applied_is_not_active(sglang_module: ModuleType) -> None:
    table = HookTable()
    table.register([hook(digest=source_digest(step))], lambda _: None)
    (status,) = table.statuses()
    assert (status.active, status.reason) == (False, "registered, and not in force")


def test_two_hooks_on_one_target_are_one_entry(sglang_module: ModuleType) -> None:
    table = HookTable()
    table.register([hook(digest=source_digest(step))] * 2, apply(sglang_module))
    (status,) = table.statuses()
    assert status.active
