"""Where things lie: the repository's own files and the cache outside the tree.

Invariant: nothing that is built or run is written inside the repository.
"""

import os
from pathlib import Path

PACKAGE_PARENT = Path(__file__).resolve().parent.parent
REPOSITORY = PACKAGE_PARENT.parent
TOOLS = PACKAGE_PARENT / "tools"
REQUIREMENTS = REPOSITORY / "requirements"
DEBIAN_PACKAGES = PACKAGE_PARENT / "packages.txt"


def cache_root() -> Path:
    """`$DUET_CACHE`, else `duet` in the user's cache folder."""
    if chosen := os.environ.get("DUET_CACHE"):
        return Path(chosen).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().resolve() / "duet"


def python_path() -> str:
    """PYTHONPATH for processes that import this package: where it lies, and what this process was given."""
    return ":".join(filter(None, [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH")]))
