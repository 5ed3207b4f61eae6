#!/usr/bin/env bash
# Measure the known weaknesses of GANs: runs results/studies/gans.py; see its --help.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -n "${PYTHON:-}${VIRTUAL_ENV:-}" ] || [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
exec "${PYTHON:-python3}" -u "$root/results/studies/gans.py" "$@"
