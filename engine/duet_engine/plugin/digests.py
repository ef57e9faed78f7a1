"""`python -m duet_engine.plugin.digests [TARGET …]`: what the sources that hooks change look like here.

Without targets it compares those of all hooks with what they were written for and ends with 1 where one differs. Run it
with the Python that has SGLang.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Sequence
from types import SimpleNamespace

from duet_engine.plugin.hooks import ROOT, Hook, source_digest


def main(targets: Sequence[str]) -> int:
    if targets:
        for target in targets:
            sys.stdout.write(f"{source_digest(pkgutil.resolve_name(ROOT + target))} {target}\n")
        return 0
    wrong = 0
    for hook in all_hooks():
        found = source_digest(pkgutil.resolve_name(hook.path))
        same = found == hook.digest
        wrong += not same
        sys.stdout.write(f"{found} {hook.target}{'' if same else f': written for {hook.digest}'}\n")
    return 1 if wrong else 0


def all_hooks() -> tuple[Hook, ...]:
    """Of the frame and of every module."""
    from duet_engine.plugin import modules, scheduler_hooks, server_hooks
    from duet_engine.plugin.warm_up import WarmUp

    nobody = SimpleNamespace(warm_up=WarmUp())
    frame = (*scheduler_hooks.HOOKS, *server_hooks.hooks(nobody))  # type: ignore[arg-type]  # nothing is called
    return (*frame, *(hook for module in modules.loaded() for hook in module.hooks))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
