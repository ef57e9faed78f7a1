"""docs/results/engine.md: the rows of `make engine-full`, by what they show.

Invariant: each row stands in exactly one section, the first whose beginnings it has.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from tests.support.bench_rows import RESULTS, Row

NAME = "engine"
TITLE = "The real SGLang with Duet's plugin, on the CPU"
INTRODUCTION = """SGLang 0.5.23 as its wheels are, two tiny models made from a seed, KV over TCP, two cores, no GPU. \
What is decided here is decided by the same code on a GPU; times are these cores' own."""
COLUMNS = ("figure", "value", "unit", "peer", "peer_value", "ratio")


@dataclass(frozen=True, slots=True)
class Section:
    """What some figures show."""

    title: str
    beginnings: tuple[str, ...]
    text: str


SECTIONS = (
    Section(
        "Answers",
        ("tiny-", "two ranks"),
        "200 prompts of 1 to 2,000 random tokens for each model, every other one sampled by a seed, eight at a time. "
        "The measure is what one ordinary server answers. Deflected prompts come with several chunk schedules and with "
        "none; the two ranks' clocks stand 1,000 s apart and run at different speeds. With another prompt's KV no "
        "answer may be equal: that is the control.",
    ),
    Section(
        "Behind a gateway",
        ("behind a gateway",),
        "Two prefill and two decode workers; one is killed (SIGKILL) with requests in it, 24 under way at the time.",
    ),
    Section(
        "Deflected prompts against an ordinary server",
        ("steps equal", "throughput"),
        "A decode worker that prefills everything itself, beside an ordinary server with equal flags in "
        "`/server_info`. Steps: all requests wait before the first one runs. Throughput: 64 requests, 16 at a time, on "
        "each in turn, from an empty cache; single rounds show what else these cores had to do.",
    ),
    Section(
        "What residents feel of a long prompt",
        ("ITL",),
        "One scheduler, fed by a script. The objective is three decode steps; the model by which chunks are safe is "
        "measured in the same run.",
    ),
    Section(
        "What the hooks cost",
        ("all hooks", "hooks of the frame"),
        "Time in Duet's hooks, step by step in the scheduler of a real server, less what SGLang's own functions inside "
        "take. It is more than the limit. With warm caches the frame's part takes [a few microseconds](plugin.md).",
    ),
    Section(
        "Soak",
        ("soak",),
        "Six callers of transferred and deflected requests; one in ten leaves, one in ten aborts. Workers are drained, "
        "settings change, and in the middle the prefill worker is killed and another one comes. Requests that failed "
        "were transfers, with SGLang's reason: after a broken one a prefill worker takes the decode worker for dead "
        "until a probe of its own reaches it: after 30 s in the run of 20 minutes, after half a second since. KV and "
        "memory are looked at when all is over.",
    ),
)


def section_of(row: Row) -> Section:
    """Where a row stands."""
    return next(section for section in SECTIONS if str(row["figure"]).startswith(section.beginnings))


def write_page(rows: list[Row]) -> None:
    """The whole page, from the rows of this run and of earlier ones."""
    lines = [f"# {TITLE}", "", INTRODUCTION]
    for section in SECTIONS:
        if held := [each for each in rows if section_of(each) is section]:
            lines += ["", f"## {section.title}", "", section.text, "", *_table(held)]
    commands = dict.fromkeys(f"`{each['command']}`, seed {each['seed']}" for each in rows)
    lines += ["", f"{'; '.join(commands)}. Python {platform.python_version()}, {os.cpu_count()} cores."]
    (RESULTS / f"{NAME}.md").write_text("\n".join(lines) + "\n")


def _table(rows: list[Row]) -> list[str]:
    cells = [["-" if each[key] is None else str(each[key]) for key in COLUMNS] for each in rows]
    head = [f"| {' | '.join(COLUMNS).replace('_', ' ')} |", "|---" * len(COLUMNS) + "|"]
    return head + [f"| {' | '.join(row)} |" for row in cells]
