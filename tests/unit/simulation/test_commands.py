"""`duet simulate` and `duet size` as people type them."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from tests.support.simulations import DEPLOYMENT, SCENARIO, WORKLOAD

from duet_operator.cli import main

EXAMPLES = Path(__file__).parents[3] / "examples" / "simulate"
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6,374,44\nnonsense\n2023-11-16 18:15:50.9,396,9\n"
LOAD = ["--rate", "3", "--input", "1000:3000", "--output", "60"]
ASKED = ["--model", "Qwen/Qwen3-8B", "--gpu", "a100-sxm", "--ttft", "800", "--itl", "50"]


def duet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], terminal_width=100)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(SCENARIO))
    return path


def test_a_scenario_is_simulated_compared_and_written(scenario: Path, tmp_path: Path) -> None:
    outputs = {name: tmp_path / f"out.{name}" for name in ("json", "html", "png", "records")}
    options = [each for name, path in outputs.items() for each in (f"--{name}", path)]
    result = duet("simulate", scenario, "--minutes", "0.2", "--compare", "round-robin,no-deflection", *options)
    assert result.exit_code == 0, result.output
    assert "attainment" in result.output
    assert all(path.stat().st_size > 1000 for path in outputs.values())
    document = json.loads(outputs["json"].read_text())
    assert [each["name"] for each in document["variants"]] == ["fixed", "round-robin", "no-deflection"]
    assert document["variants"][1]["figures"]["deflected_share"] == 0


def test_a_seed_gives_the_same_run_and_another_seed_another(scenario: Path, tmp_path: Path) -> None:
    digests = []
    for seed in (5, 5, 6):
        assert (
            duet("simulate", scenario, "--minutes", "0.3", "--seed", str(seed), "--json", tmp_path / "o").exit_code == 0
        )
        digests.append(json.loads((tmp_path / "o").read_text())["variants"][0]["digest"])
    assert digests[0] == digests[1] != digests[2]


def test_a_deployment_and_its_workload_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump_all([DEPLOYMENT, WORKLOAD]))
    result = duet("simulate", path, "--minutes", "0.3", "--quiet")
    assert result.exit_code == 0, result.output
    assert "prefill a100-sxm, decode a100-sxm, Qwen/Qwen3-8B" in result.output.replace("\n", " ")


def test_a_bad_line_of_a_trace_is_named_or_counted(scenario: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE)
    refused = duet("simulate", scenario, "--trace", trace)
    assert refused.exit_code == 1
    assert "trace.csv: line 3: has 1 cells, expected 3" in refused.output
    counted = duet("simulate", scenario, "--trace", trace, "--skip-bad-lines")
    assert counted.exit_code == 0, counted.output
    assert "1 bad lines were left out" in counted.output


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--compare", "hpaa"], "'hpaa' is neither a planner nor a routing; planners are duet"),
        (["--gpu", "h300"], "unknown GPU 'h300'"),
        (["--planner", "nobody"], "planner 'nobody' isn't known"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(scenario: Path, arguments: list[str], problem: str) -> None:
    result = duet("simulate", scenario, *arguments)
    assert result.exit_code == 1
    assert problem in result.output


def test_a_file_with_a_mistake_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(SCENARIO | {"warmup": 1}))
    assert "wrong.yaml: warmup: isn't a field; look for a typing error" in duet("simulate", path).output


def test_a_size_is_found_from_options_and_says_its_basis() -> None:
    result = duet("size", *ASKED, *LOAD, "--window", "0.5", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.output)
    assert document["answer"]["verified"]
    assert document["answer"]["gpus"] == document["answer"]["prefill"] + document["answer"]["decode"]
    assert document["basis"]["prefill"] == "kernel-composed"
    assert document["what_if"][0]["group"] == "as asked"
    assert all(trial["requests"] > 50 for trial in document["trials"])


def test_a_size_is_told_in_words_and_by_the_law_alone() -> None:
    result = duet("size", *ASKED, *LOAD, "--no-verify")
    assert result.exit_code == 0, result.output
    assert "by the sizing law alone" in result.output.replace("\n", " ")
    assert "What if" in result.output
    assert "kernel-composed" in result.output


def test_a_size_is_found_for_a_file(scenario: Path) -> None:
    result = duet("size", scenario, "--no-verify", "--json")
    assert json.loads(result.output)["load"]["requests_per_second"] == pytest.approx(3, rel=0.3)


def test_options_that_a_file_answers_are_refused_beside_it(scenario: Path) -> None:
    result = duet("size", scenario, "--rate", "5", "--ttft", "500")
    assert result.exit_code == 1
    assert "--ttft, --rate: the file says this; change it there, or leave the file out" in result.output


def test_missing_options_are_named() -> None:
    result = duet("size", "--model", "Qwen/Qwen3-8B", "--rate", "3")
    assert result.exit_code == 1
    assert "--gpu, --ttft, --itl, --input, --output: required without a file (or --trace for the load)" in result.output
    assert "isn't MEAN or MEAN:P95" in duet("size", *ASKED, "--rate", "3", "--input", "many").output


def test_a_library_that_is_missing_is_said_before_anything_runs(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duet_operator.simulation.commands.find_spec", lambda name: None if name == "pyarrow" else name)
    result = duet("simulate", scenario, "--records", tmp_path / "out.parquet")
    assert (result.exit_code, "pyarrow is missing: install duet-serve[simulate]" in result.output) == (1, True)


def test_a_workload_is_written_for_other_tools_and_reads_back(scenario: Path, tmp_path: Path) -> None:
    trace = tmp_path / "made.jsonl"
    assert duet("simulate", scenario, "--write-trace", trace).exit_code == 0
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    assert len(lines) == pytest.approx(180, rel=0.3)
    assert duet("simulate", scenario, "--trace", trace, "--minutes", "0.1").exit_code == 0


def test_the_bundled_trace_is_what_its_file_makes(tmp_path: Path) -> None:
    assert duet("simulate", EXAMPLES / "sample.yaml", "--write-trace", tmp_path / "again.jsonl").exit_code == 0
    assert (tmp_path / "again.jsonl").read_text() == (EXAMPLES / "sample.jsonl").read_text()


@pytest.mark.parametrize("name", ["deployment.yaml", "scenario.yaml", "sample.yaml"])
def test_the_examples_run(name: str) -> None:
    result = duet("simulate", EXAMPLES / name, "--minutes", "0.5", "--quiet")
    assert result.exit_code == 0, result.output
    assert "attainment" in result.output
