#!/bin/sh
# Resolve pyproject.toml into hashed requirement files, newest first: run it to update, review the diff, commit.
# Addresses of package indexes never go in: a file with only names, versions and hashes installs from any mirror.
set -eu
cd "$(dirname "$0")/.."
compile() {
    out=$1; shift
    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-emit-find-links --no-annotate --custom-compile-command "requirements/compile.sh" "$@" \
        --output-file "requirements/$out.txt"
}
compile operator --extra operator pyproject.toml
compile gateway --extra gateway pyproject.toml
# The real SGLang for machines without a GPU (make engine-env); images have SGLang's own instead.
compile engine --extra engine --group engine pyproject.toml
# What the engine's image has beside SGLang's: in the versions that are tested with it.
printf '%s\n' 'PyJWT[crypto]' click rich | compile engine-image --constraint requirements/engine.txt -
compile dev --extra operator --extra gateway --extra simulate --group dev pyproject.toml
# What makes the wheel that goes into images.
sed -n 's/^requires = \["\(.*\)"\]$/\1/p' pyproject.toml | compile build --constraint requirements/dev.txt -
# The installer of dev.txt, alone: the first thing that an empty environment gets.
{
    echo "# What installs requirements/dev.txt; made by requirements/compile.sh"
    sed -n '/^uv==/,/^[^ ]/{/^uv==/p;/^ /p}' requirements/dev.txt
} > requirements/bootstrap.txt
