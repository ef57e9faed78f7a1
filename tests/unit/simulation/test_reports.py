"""Reports: figures are what the requests say, series what the workers did, and the page needs nothing but itself."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from tests.support.simulations import compared

from duet_engine.slo import Outcome as Seen
from duet_engine.slo import judge
from duet_operator.simulation.files import results_document, write_json, write_records
from duet_operator.simulation.html_report import html_report
from duet_operator.simulation.outcome import Outcome
from duet_operator.simulation.svg import Chart, Scale
from duet_operator.simulation.timeline import draw_timeline
from duet_operator.simulation.words import number, percent, seconds


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page() -> str:
    study, outcomes = compared()
    return html_report(study, outcomes, command="duet simulate <file> & more")


def first() -> Outcome:
    return compared()[1][0]


def test_figures_are_what_the_one_definition_says_of_the_requests() -> None:
    study, outcomes = compared()
    for outcome in outcomes:
        rows, figures = outcome.result.requests, outcome.figures
        verdicts = [
            judge(
                Seen(
                    succeeded=bool(rows.succeeded[index]),
                    ttft_seconds=float(rows.ttft_seconds[index]),
                    output_tokens=int(rows.output_tokens[index]),
                    decode_seconds=float(rows.last_token_seconds[index] - rows.first_token_seconds[index]),
                    gaps_over_objective=int(rows.gaps_over_objective[index]),
                ),
                study.spec.objective,
            )
            for index in range(len(rows))
        ]
        assert figures.requests == len(verdicts)
        assert figures.attainment == pytest.approx(np.mean([verdict.met for verdict in verdicts]))
        assert figures.ttft_p95_seconds == pytest.approx(np.percentile(rows.ttft_seconds, 95))


def test_series_add_up_to_the_figures() -> None:
    outcome = first()
    ends = [since for since, _ in outcome.gpus[1:]] + [outcome.result.end_seconds]
    hours = sum(held * (end - since) for (since, held), end in zip(outcome.gpus, ends, strict=True)) / 3600
    assert hours == pytest.approx(outcome.figures.gpu_hours)
    assert max(held for _, held in outcome.gpus) == outcome.figures.peak_gpus
    arrived = sum(outcome.windows.requests_per_second) * outcome.window_seconds
    assert arrived == pytest.approx(len(outcome.result.requests), abs=1)
    pools = outcome.pools
    assert set(pools) == {"prefill", "decode"}
    assert all(min(series.ready) >= 0 and min(series.starting) >= 0 for series in pools.values())
    assert max(pools["prefill"].starting) + max(pools["decode"].starting) >= 1


def test_the_json_is_whole_and_plain(tmp_path: Path) -> None:
    study, outcomes = compared()
    document = results_document(study, outcomes, command="duet simulate")
    write_json(tmp_path / "out.json", document)
    read = json.loads((tmp_path / "out.json").read_text())
    assert [each["name"] for each in read["variants"]] == ["duet", "fixed+round-robin"]
    assert read["variants"][0]["figures"]["attainment"] == first().figures.attainment
    assert read["basis"]["prefill"] == "kernel-composed"
    assert read["workload"]["traffic"]["outputTokens"]["mean"] == 60


def test_records_are_a_row_a_request_of_each_variant(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    outcomes = compared()[1]
    write_records(tmp_path / "out.parquet", outcomes)
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.num_rows == sum(len(outcome.result.requests) for outcome in outcomes)
    assert {"variant", "class_name", "ttft_seconds", "tpot_seconds", "deflected"} <= set(table.column_names)
    assert table.column("ttft_seconds")[0].as_py() == pytest.approx(float(outcomes[0].result.requests.ttft_seconds[0]))


def test_the_timeline_is_a_picture(tmp_path: Path) -> None:
    study, outcomes = compared()
    draw_timeline(study, outcomes[0], tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_loads_nothing(page: str) -> None:
    elements = Elements(page).found
    assert not [tag for tag, _ in elements if tag in ("link", "img", "iframe", "object", "embed")]
    assert not [each for _, each in elements if {"src", "href", "srcset", "data", "xlink:href"} & each.keys()]
    assert not re.findall(r"https?://|url\(|@import", page)


def test_the_page_shows_the_figures_and_escapes_what_it_is_given(page: str) -> None:
    for outcome in compared()[1]:
        assert percent(outcome.figures.attainment, 2) in page
        assert f"{outcome.figures.gpu_hours:.2f}" in page
        assert (f"Workers: {outcome.name}" in page) == bool(outcome.scale_actions)
    assert "duet simulate &lt;file&gt; &amp; more" in page
    assert "duet misses the objectives" in page or "duet holds the objectives" in page
    assert first().scale_actions[0].reason.replace("<", "&lt;") in page.replace("&gt;", ">").replace("&#x27;", "'")


def test_charts_are_well_formed_and_stay_inside(page: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 1 + 1 + 2 + 1
    for chart in charts:
        root = ElementTree.fromstring(chart)
        width, height = map(float, root.attrib["viewBox"].split()[2:])
        for path in root.iter("path"):
            numbers = [float(each) for each in re.findall(r"-?\d+(?:\.\d+)?", path.attrib["d"])]
            assert all(0 <= x <= width for x in numbers[::2])
            assert all(0 <= y <= height for y in numbers[1::2])
        assert json.loads(root.attrib["data-series"]) or "Attainment over" in root.attrib["aria-label"]


def test_lines_break_where_nothing_is_known_and_ticks_are_round() -> None:
    chart = Chart(x_high=3, y_high=1, label="l", x_words=str, y_words=str)
    chart.line([0, 1, 2, 3], [0.5, None, 0.5, 0.6], name="n", colour=0)
    assert re.search(r'd="M[^L]*M[^L]*L[^L]*"', chart.render())
    assert Scale(0, 9, 0, 100).ticks() == [0, 5]
    assert Scale(0, 1800, 0, 100, unit=60).ticks() == [0, 600, 1200, 1800]
    assert Scale(0, 2, 0, 100, whole=True).ticks() == [0, 1, 2]


def test_words() -> None:
    assert [percent(share, 2) for share in (None, 1.0, 0.99999, 0.5)] == ["–", "100.00 %", "99.99 %", "50.00 %"]
    assert [seconds(value) for value in (None, 0.0042, 0.8, 1.234, 250.0)] == [
        "–",
        "4.2 ms",
        "800 ms",
        "1.23 s",
        "250 s",
    ]
    assert [number(value) for value in (None, 3.14159, 1234, 14155, 2_500_000)] == [
        "–",
        "3.14",
        "1234",
        "14.2k",
        "2.5M",
    ]
