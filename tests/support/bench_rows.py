"""Figures of a benchmark whose phases may be run one at a time: rows, and the page that shows them."""

import json
import os
import platform
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
MACHINE_END = " cores.\n"
COLUMNS = ("figure", "value", "unit", "peer", "peer_value", "ratio")

Row = dict[str, object]


def row(figure: str, value: float, unit: str, peer: str = "-", peer_value: float | None = None) -> Row:
    ratio = round(value / peer_value, 3) if peer_value else None
    return {"figure": figure, "value": value, "unit": unit, "peer": peer, "peer_value": peer_value, "ratio": ratio}


def write_results(rows: list[Row], *, name: str, title: str, command: str, seed: int | None) -> None:
    """Beside the figures of earlier runs that this one didn't measure anew."""
    write_page(merged(rows, name=name, command=command, seed=seed), name=name, title=title)


def merged(rows: list[Row], *, name: str, command: str, seed: int | None) -> list[Row]:
    """All rows that are known now, which are in the results' JSON from here on."""
    path = RESULTS / f"{name}.json"
    earlier: list[Row] = json.loads(path.read_text()) if path.exists() else []
    shown = [each | {"command": command, "seed": seed} for each in rows]
    known = {each["figure"] for each in shown}
    shown = [each for each in earlier if each["figure"] not in known] + shown
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(shown, indent=2) + "\n")
    return shown


def write_page(rows: list[Row], *, name: str, title: str) -> None:
    """The table, the commands and the machine; what somebody wrote below them stays."""
    path = RESULTS / f"{name}.md"
    below = path.read_text().partition(MACHINE_END)[2] if path.exists() else ""
    lines = [f"# {title}", "", f"| {' | '.join(COLUMNS).replace('_', ' ')} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join('-' if each[key] is None else str(each[key]) for key in COLUMNS)} |" for each in rows]
    commands = dict.fromkeys(
        f"`{each['command']}`" + ("" if each["seed"] is None else f", seed {each['seed']}") for each in rows
    )
    lines += [
        "",
        *(f"- {line}" for line in commands),
        "",
        f"Python {platform.python_version()}, {os.cpu_count()}",
    ]
    path.write_text("\n".join(lines) + MACHINE_END + below)
