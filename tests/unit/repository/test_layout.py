"""Facts of the repository that a slip would break silently."""

from __future__ import annotations

import operator
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_operator_folder_is_no_package() -> None:
    """A package there would shadow the standard library's `operator` for everything started in this folder."""
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert Path(operator.__file__).parent == Path(tomllib.__file__).parents[1]


def test_folders_on_the_import_path_hold_only_our_package() -> None:
    """The editable install puts both folders on sys.path: anything else in them would be importable at top level."""
    for folder, package in (("operator", "duet_operator"), ("engine", "duet_engine")):
        entries = {entry.name for entry in (ROOT / folder).iterdir() if entry.name != "__pycache__"}
        assert entries == {package}


def test_records_of_decisions_are_numbered_one_by_one() -> None:
    """They are referred to by number, in their files' names and in their titles."""
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [record.name[:4] for record in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    titles = [record.read_text().splitlines()[0] for record in records]
    assert [title.split(".")[0] for title in titles] == [f"# {number}" for number in range(1, len(records) + 1)]


def test_requirement_files_name_no_address() -> None:
    for file in (ROOT / "requirements").glob("*.txt"):
        assert "://" not in file.read_text(), f"{file.name} names an index; requirements/compile.sh leaves them out"


def test_every_requirement_is_hashed() -> None:
    for file in (ROOT / "requirements").glob("*.txt"):
        for line in file.read_text().splitlines():
            if line and not line.startswith((" ", "#")):
                assert line.endswith("\\"), f"{file.name}: {line} has no hash"


def test_every_dependency_says_why() -> None:
    """A dependency costs every user something; the reason stands beside it, or stands for the group."""
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start, end = lines.index("dependencies = ["), lines.index("[project.scripts]")
    dependencies = [line.strip() for line in lines[start + 1 : end] if line.startswith('    "')]
    repeated = {"PyJWT[crypto]>=2.10", "torch", "sglang"}
    bare = [line for line in dependencies if "#" not in line and not any(name in line for name in repeated)]
    assert bare == []
