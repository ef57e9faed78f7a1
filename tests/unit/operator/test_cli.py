"""The command line: what it prints, what it refuses, and that it needs no Kopf."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from duet_operator.cli import main

ROOT = Path(__file__).parents[3]
GOOD = """
apiVersion: duetserve.io/v1alpha1
kind: DuetDeployment
metadata: {name: small}
spec: {model: {id: m}, slo: {ttftMilliseconds: 800, itlMilliseconds: 50}}
"""


def run(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=text)


def test_the_definition_is_the_checked_in_one() -> None:
    assert run("crd").output == (ROOT / "crds" / "duetserve.io_duetdeployments.yaml").read_text()


def test_examples_are_valid() -> None:
    for example in (ROOT / "examples").glob("*.yaml"):
        result = run("validate", str(example))
        assert result.exit_code == 0, result.output
        assert "is valid" in result.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("ttftMilliseconds: 800", "ttftMilliseconds: 0"), "spec.slo.ttftMilliseconds: Input should be greater"),
        (("itlMilliseconds: 50", "itlMiliseconds: 50"), "spec.slo.itlMiliseconds isn't a field"),
        (("kind: DuetDeployment", "kind: Deployment"), "holds no DuetDeployment"),
        (("{name: small}", "{name: small"), "isn't YAML"),
        (("metadata: {name: small}", ""), "metadata: Field required"),
    ],
)
def test_a_bad_manifest_is_refused_with_the_field(change: tuple[str, str], said: str) -> None:
    result = run("validate", "-", text=GOOD.replace(*change))
    assert result.exit_code == 1
    assert said in result.output


def test_it_runs_without_kopf_and_a_kubernetes_client() -> None:
    script = (
        "import sys; sys.modules['kopf'] = sys.modules['kubernetes'] = None\n"
        "from duet_operator.cli import main; main(['validate', '-'])"
    )
    result = subprocess.run([sys.executable, "-c", script], input=GOOD, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "DuetDeployment default/small is valid\n"), result.stderr


def test_the_gateway_s_options_go_through() -> None:
    result = run("gateway", "--help")
    assert result.exit_code == 0
    assert "duet gateway [OPTIONS]" in result.output
