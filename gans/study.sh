#!/usr/bin/env bash
# What GANs are said to be bad at, measured: results/studies/gans.py, which --help describes.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -n "${PYTHON:-}${VIRTUAL_ENV:-}" ] || [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
exec "${PYTHON:-python3}" -u "$root/results/studies/gans.py" "$@"
