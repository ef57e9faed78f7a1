"""The report as one HTML file: everything is in it, nothing is loaded from anywhere.

Invariant: readable without its script, in light and in dark; every text that comes from a file is escaped.
"""

from __future__ import annotations

from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from duet_operator.settings import package_version
from duet_operator.simulation.charts import panels
from duet_operator.simulation.table import notes
from duet_operator.simulation.words import number, percent, seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duet_operator.simulation.charts import Panel
    from duet_operator.simulation.outcome import Outcome
    from duet_operator.simulation.study import Study

MOST_DECISIONS = 400


def html_report(study: Study, outcomes: Sequence[Outcome], *, command: str) -> str:
    """The page."""
    title = f"{study.name}: {study.workload.name}"
    body = "".join(
        (
            _header(study, title),
            _verdict(study, outcomes),
            _facts(study, outcomes[0]),
            _table(study, outcomes) if len(outcomes) > 1 else "",
            *(_section(panel) for panel in panels(study, outcomes)),
            _decisions(outcomes[0]),
            _footer(study, outcomes, command),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_asset('report.css')}</style></head>"
        f"<body><main>{body}</main><script>{_asset('report.js')}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return resources.files("duet_operator.simulation").joinpath("page", name).read_text(encoding="utf-8")


def _header(study: Study, title: str) -> str:
    model, objective = study.decode.hardware.model, study.spec.objective
    words = (
        f"{model} at TTFT {seconds(objective.ttft_seconds)}, ITL {seconds(objective.itl_seconds)}, "
        f"for {percent(study.spec.attainment_goal)} of the requests"
    )
    return (
        f'<header><div><h1>{escape(title)}</h1><p class="soft">{escape(words)}</p></div>'
        '<button type="button">Light or dark</button></header>'
    )


def _verdict(study: Study, outcomes: Sequence[Outcome]) -> str:
    """The one sentence that a reader in a hurry needs."""
    first, goal = outcomes[0], study.spec.attainment_goal
    met = first.figures.attainment or 0.0
    holds = met >= goal
    words = (
        f"{first.name} {'holds' if holds else 'misses'} the objectives: {percent(met, 2)} of the requests met both, "
        f"for {first.figures.gpu_hours:.2f} GPU-hours."
    )
    others = [each for each in outcomes[1:] if (each.figures.attainment or 0.0) >= goal]
    if holds and others:
        cheapest = min(others, key=lambda each: each.figures.gpu_hours)
        ratio = first.figures.gpu_hours / cheapest.figures.gpu_hours
        words += (
            f" The cheapest of the others that do, {cheapest.name}, takes {cheapest.figures.gpu_hours:.2f} "
            f"({ratio:.2f} x of it here)."
        )
    elif holds and len(outcomes) > 1:
        words += " None of the others does."
    return f'<p class="verdict {"good" if holds else "bad"}">{escape(words)}</p>'


def _facts(study: Study, outcome: Outcome) -> str:
    figures, objective = outcome.figures, study.spec.objective
    facts = (
        ("Attainment", percent(figures.attainment, 2), f"goal {percent(study.spec.attainment_goal)}"),
        (
            f"TTFT P95 (goal {seconds(objective.ttft_seconds)})",
            seconds(figures.ttft_p95_seconds),
            f"P99 {seconds(figures.ttft_p99_seconds)}",
        ),
        (
            f"TPOT P95 (goal {seconds(objective.itl_seconds)})",
            seconds(figures.tpot_p95_seconds),
            f"ITL P99 {seconds(figures.itl_p99_seconds)}",
        ),
        ("GPU-hours", f"{figures.gpu_hours:.2f}", f"mean {figures.mean_gpus:.1f} GPUs, peak {figures.peak_gpus}"),
        (
            "Requests",
            number(figures.requests),
            f"{figures.requests_per_second:.2f}/s, {percent(figures.deflected_share)} deflected",
        ),
    )
    items = "".join(
        f'<div class="fact"><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>'
        for name, value, more in facts
    )
    return f'<dl class="facts">{items}</dl>'


def _table(study: Study, outcomes: Sequence[Outcome]) -> str:
    names = ("variant", "attainment", "TTFT P50", "P95", "P99", "TPOT P95", "ITL P99", "deflected", "GPU-hours", "peak")
    head = "".join(f"<th>{escape(name)}</th>" for name in (*names, "actions", "failed"))
    rows = "".join(f"<tr>{_row(outcome, study.spec.attainment_goal)}</tr>" for outcome in outcomes)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(outcome: Outcome, goal: float) -> str:
    figures = outcome.figures
    cells = (
        outcome.name,
        percent(figures.attainment, 2),
        *map(seconds, (figures.ttft_p50_seconds, figures.ttft_p95_seconds, figures.ttft_p99_seconds)),
        seconds(figures.tpot_p95_seconds),
        seconds(figures.itl_p99_seconds),
        percent(figures.deflected_share),
        f"{figures.gpu_hours:.2f}",
        str(figures.peak_gpus),
        str(figures.scale_actions),
        str(figures.failed),
    )
    verdict = "good" if (figures.attainment or 0.0) >= goal else "bad"
    kinds = ["", verdict, *[""] * (len(cells) - 2)]
    return "".join(f'<td class="{kind}">{escape(cell)}</td>' for kind, cell in zip(kinds, cells, strict=True))


def _section(panel: Panel) -> str:
    legend = "".join(f'<li class="c{colour}">{escape(name)}</li>' for colour, name in panel.legend)
    names = f'<ul class="legend">{legend}</ul>' if legend else ""
    return f"<section><h2>{escape(panel.title)}</h2><p>{escape(panel.note)}</p>{panel.svg}{names}</section>"


def _decisions(outcome: Outcome) -> str:
    actions = outcome.scale_actions
    if not actions:
        return ""
    rows = "".join(
        f"<tr><td>{action.at_seconds / 60:.1f} min</td><td>{action.prefill} + {action.decode}</td>"
        f"<td>{escape(action.reason)}</td></tr>"
        for action in actions[:MOST_DECISIONS]
    )
    return (
        f"<details><summary>{len(actions)} scale actions of {escape(outcome.name)}, prefill + decode workers, and why"
        f'</summary><div class="table"><table>{rows}</table></div></details>'
    )


def _footer(study: Study, outcomes: Sequence[Outcome], command: str) -> str:
    lines = [
        *notes(study, outcomes),
        "TTFT: arrival at the gateway to first token. TPOT: a request's mean gap between tokens; ITL: every gap. "
        "A request meets its objectives by Duet's one definition (duet_engine.slo). "
        "GPU-hours: from scheduled to gone, cold starts and drains included.",
    ]
    words = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f"<footer>{words}<p><code>{escape(command)}</code> with Duet {escape(package_version())}</p></footer>"
