#!/usr/bin/env bash
# The main job; compare.py says what it does. Runs it with $PYTHON, an active environment's Python, or .venv's.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -n "${PYTHON:-}${VIRTUAL_ENV:-}" ] || [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
exec "${PYTHON:-python3}" "$root/results/compare.py" "$@"
