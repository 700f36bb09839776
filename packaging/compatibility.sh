#!/usr/bin/env bash
# Does the package work on the oldest releases it allows, on other Pythons, and from what is published?
#
#   packaging/compatibility.sh oldest          the lower bounds of pyproject.toml (requirements/oldest.txt)
#   packaging/compatibility.sh python 3.12     the newest releases on another Python
#   packaging/compatibility.sh dist            wheel and sdist: checked, and installed into clean environments
#   packaging/compatibility.sh extras          every extra resolves
#
# Needs network and some gigabytes below $WORK; everything else is left as it is. TESTS narrows what is run.
set -euo pipefail
cd "$(dirname "$0")/.."

WORK=${WORK:-$(mktemp -d)}
TESTS=${TESTS:-tests/learning/test_following.py tests/learning/test_tune.py tests/exchange/test_import.py
    tests/web/test_serve.py tests/test_packaging.py}
pip() { # of an environment
    local at=$1
    shift
    "$WORK/$at/bin/python" -m pip --disable-pip-version-check --quiet "$@"
}

environment() { # a fresh one of a Python
    rm -rf "$WORK/$1" && "$2" -m venv "$WORK/$1"
}

suite() { # the tests, on the installed package and not on the checkout; old releases may warn
    local here=$PWD
    rm -rf "$WORK/suite" && mkdir -p "$WORK/suite"
    cp -r tests pyproject.toml docs README.md CONTRIBUTING.md LICENSE CITATION.cff Dockerfile .dockerignore \
        packaging requirements src "$WORK/suite"
    # shellcheck disable=SC2086
    (cd "$WORK/suite" && OMP_WAIT_POLICY=PASSIVE "$WORK/$1/bin/python" -m pytest \
        -p no:cacheprovider -o filterwarnings=default --disable-warnings $TESTS)
    cd "$here"
}

case ${1:-} in
oldest)
    environment oldest "${PYTHON:-python3.11}"
    pip oldest install --requirement requirements/oldest.txt pytest beartype hypothesis
    pip oldest install --no-deps .
    suite oldest
    ;;
python)
    environment "python$2" "python$2"
    pip "python$2" install --constraint requirements/constraints.txt \
        '.[clip,data,demo,lora,onnx,serve,tensorboard]' pytest beartype hypothesis
    suite "python$2"
    ;;
dist)
    environment build "${PYTHON:-python3.11}"
    pip build install build twine
    rm -rf "$WORK/dist" && "$WORK/build/bin/python" -m build --outdir "$WORK/dist"
    "$WORK/build/bin/twine" check --strict "$WORK"/dist/*
    for made in "$WORK"/dist/*; do
        environment clean "${PYTHON:-python3.11}"
        pip clean install "$made[demo]" mypy
        "$WORK/clean/bin/pip" check
        (
            cd "$WORK"
            printf '%s\n' 'import vprompt' 'made: vprompt.Artifact = vprompt.load_artifact("pool/mine")' \
                'reveal_type(made.classes)' >user.py
            clean/bin/mypy user.py
            VPROMPT_CACHE=$WORK/cache clean/bin/vprompt learn digits --model tiny --epochs 1 --shots 2 \
                --output "$WORK/made" --overwrite --quiet
        )
    done
    ;;
extras)
    environment extras "${PYTHON:-python3.11}"
    for extra in $(sed -n '/^\[project.optional-dependencies\]/,/^\[project.scripts\]/s/^\([a-z]*\) = .*/\1/p' pyproject.toml); do
        echo "$extra"
        pip extras install --dry-run ".[$extra]"
    done
    ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
