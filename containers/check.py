"""Run the Containerfile's commands in a folder in place of a container, then start what the image would start.

    python containers/check.py operator|gateway|simulated-engine|engine

For machines without a container engine: it shows that the pinned packages install by hash, that the wheel is built and
that the entry point starts and knows its options. It shows nothing of the base image. Needs a package index.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTAINERFILE = ROOT / "containers" / "Containerfile"
PLACES = re.compile(r"(?<![\w.])/(opt|wheel|src)\b")
"""Folders of the image that the commands name, found below a folder of this machine instead."""

Stage = list[tuple[str, str]]


def stages() -> dict[str, tuple[str, Stage]]:
    """Each stage by name: what it starts from, and its instructions."""
    found: dict[str, tuple[str, Stage]] = {}
    name = ""
    for line in CONTAINERFILE.read_text().splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = (base, [])
        elif word and word != "ARG" and not word.startswith("#"):
            found[name][1].append((word, rest))
    return found


def instructions(name: str) -> Iterator[tuple[str, str]]:
    """Those of a stage after those of the stages that it starts from or copies from."""
    base, own = stages()[name]
    if base in stages():
        yield from instructions(base)
    for word, rest in own:
        if word == "COPY" and rest.startswith("--from="):
            yield from instructions(rest.removeprefix("--from=").partition(" ")[0])
        else:
            yield word, rest


def check(target: str, root: Path) -> int:
    """Carry out every instruction below `root`; the exit status of the entry point asked for help."""
    venv.create(root / "python", with_pip=True)
    environment = os.environ | {"PATH": f"{root / 'python' / 'bin'}:{os.environ['PATH']}"}
    folder = root
    for word, rest in instructions(target):
        sys.stdout.write(f"{word} {rest}\n")
        sys.stdout.flush()
        if word == "ENV":
            settings = dict(part.split("=", 1) for part in shlex.split(rest))
            environment |= {key: PLACES.sub(rf"{root}/\1", value) for key, value in settings.items() if key != "PATH"}
        elif word == "WORKDIR":
            folder = root / rest.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            copy(*rest.split(), into=folder)
        elif word == "RUN":
            command = PLACES.sub(rf"{root}/\1", rest)
            subprocess.run(["sh", "-c", command], cwd=folder, env=environment, check=True)
        elif word == "ENTRYPOINT":
            (program,) = json.loads(rest)
            places = f"{root / 'opt/duet/bin'}:{environment['PATH']}"
            started = shutil.which(program, path=places) or program
            return subprocess.run([started, "--help"], cwd=folder, env=environment).returncode
    raise SystemExit(f"{target} has no ENTRYPOINT")


def copy(*sources: str, into: Path) -> None:
    """As COPY does it: a folder's content into the last path, files into it."""
    *froms, place = sources
    target = into / place
    for source in (ROOT / each for each in froms):
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in stages():
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(check(sys.argv[1], Path(scratch)))
