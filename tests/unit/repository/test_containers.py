"""The Containerfile agrees with the chart, the operator and the package. `containers/check.py` runs its commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from duet_engine.plugin.registration import SUPPORTED_VERSIONS
from duet_operator.resources.gateway import UNPRIVILEGED_USER
from duet_operator.resources.images import DEFAULT_GATEWAY_IMAGE

ROOT = Path(__file__).parents[3]
LINES = (ROOT / "containers" / "Containerfile").read_text().splitlines()
CHART = ROOT / "charts" / "duet"


def instructions(word: str) -> list[str]:
    return [line.removeprefix(word).strip() for line in LINES if line.startswith(f"{word} ")]


def stages() -> dict[str, list[str]]:
    """Instructions of each stage."""
    found: dict[str, list[str]] = {}
    for line in LINES:
        if line.startswith("FROM "):
            found[line.rpartition(" AS ")[2]] = []
        elif found:
            found[list(found)[-1]].append(line)
    return found


def entry_points() -> dict[str, str]:
    return {
        name: json.loads(line.removeprefix("ENTRYPOINT"))[0]
        for name, lines in stages().items()
        for line in lines
        if line.startswith("ENTRYPOINT")
    }


def test_each_image_starts_a_program_of_the_package_of_its_name() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert entry_points() == {
        target: f"duet-{target}" for target in ("operator", "gateway", "simulated-engine", "engine")
    }
    assert set(entry_points().values()) <= scripts.keys()


def test_the_chart_and_the_operator_name_these_images() -> None:
    helpers = (CHART / "templates" / "_helpers.tpl").read_text()
    named = set(re.findall(r'"%s/(duet-[a-z]+):%s"', helpers))
    assert named == {entry_points()[target] for target in ("operator", "gateway", "engine")}
    assert DEFAULT_GATEWAY_IMAGE.rpartition("/")[2].partition(":")[0] == entry_points()["gateway"]


def test_ours_run_as_the_user_that_pods_ask_for() -> None:
    (user,) = instructions("USER")
    assert user == f"{UNPRIVILEGED_USER}:{UNPRIVILEGED_USER}"
    assert f"runAsUser: {UNPRIVILEGED_USER}" in (CHART / "templates" / "deployment.yaml").read_text()
    started_from = {line.split()[3]: line.split()[1] for line in LINES if line.startswith("FROM ")}
    # SGLang's image keeps its own user: its caches lie in that user's home.
    assert {target: started_from[target] for target in entry_points() if started_from[target] != "unprivileged"} == {
        "engine": "${SGLANG}"
    }


def test_everything_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / "containers" / "Containerfile.dockerignore").read_text().splitlines()
    admitted = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert ignored[0] == "*"
    for copied in instructions("COPY"):
        if not copied.startswith("--from="):
            for source in copied.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source.partition("/")[0] in admitted, source


def test_nothing_comes_from_an_index_without_a_hash() -> None:
    installs = [line for line in instructions("RUN") if " pip " in line]
    assert len(installs) == 8
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)


def test_the_engines_image_has_the_sglang_that_the_plugin_is_written_for() -> None:
    (tag,) = re.findall(r"^ARG SGLANG=\S+:v(\S+)$", "\n".join(LINES), re.M)
    assert tag == SUPPORTED_VERSIONS[-1]
    engine = (ROOT / "requirements" / "engine.txt").read_text()
    assert f"\nsglang=={tag} " in engine
    for line in (ROOT / "requirements" / "engine-image.txt").read_text().splitlines():
        if "==" in line:
            assert line.split()[0] in engine, "not the version that is tested with SGLang"


def test_what_builds_the_wheel_is_pinned() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pinned = (ROOT / "requirements" / "build.txt").read_text()
    for requirement in wanted:
        assert f"\n{requirement.partition('>=')[0]}==" in pinned


def test_asking_the_operator_for_help_starts_nothing() -> None:
    for option in ("--help", "--version"):
        asked = subprocess.run([sys.executable, "-m", "duet_operator", option], capture_output=True, text=True)
        assert (asked.returncode, asked.stderr) == (0, "")


def test_an_unknown_argument_of_the_operator_is_an_error() -> None:
    asked = subprocess.run([sys.executable, "-m", "duet_operator", "run"], capture_output=True, text=True)
    assert asked.returncode == 2
    assert "unrecognized arguments: run" in asked.stderr


def test_values_are_documented_one_by_one() -> None:
    """Each value of the chart has a row in the installation page, and the page names no other."""
    documented = dict(
        re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", (ROOT / "docs" / "installation.md").read_text(), re.M)
    )
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def leaves(value: object, path: str) -> dict[str, object]:
        if isinstance(value, dict) and value and path != "resources":
            return {k: v for name, part in value.items() for k, v in leaves(part, f"{path}.{name}".lstrip(".")).items()}
        return {path: value}

    assert {path: yaml.safe_load(text) for path, text in documented.items()} == leaves(values, "")
