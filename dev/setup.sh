#!/bin/sh
# Make .venv hold exactly what requirements/dev.txt says, and this project in editable form. A second run takes no time.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Duet needs Python 3.11 or newer, and $python is $("$python" --version 2>&1). Set PYTHON to a newer one." >&2
    exit 1
}

fingerprint=$(cat requirements/bootstrap.txt requirements/dev.txt pyproject.toml dev/setup.sh | sha256sum | cut -c1-16)
stamp=.venv/.duet-$fingerprint
[ -e "$stamp" ] && [ "$(cat "$stamp")" = "$PWD" ] && exit 0

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian ships the venv module in a package of its own.
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
    else
        echo "Python's venv module is missing. Run: sudo apt-get install python3-venv" >&2
        exit 1
    fi
fi

started=$(date +%s)
echo "setting up .venv (about a minute with empty caches) ..."
# An interrupted run may have left an environment without pip.
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
# uv prefers an activated environment to ./.venv; this one is meant.
.venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes requirements/dev.txt
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
rm -f .venv/.duet-*
printf %s "$PWD" > "$stamp"
echo ".venv ready after $(($(date +%s) - started)) s"
