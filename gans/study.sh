#!/usr/bin/env bash
# What GANs are said to be bad at, measured: four studies at CPU size, each training used by every study that needs it.
#
#   bash gans/study.sh --plan
#   bash gans/study.sh --data cifar10
#   bash gans/study.sh modes --seconds 60
#
# Writes results/studies/gan-<study>/. Call it again after an interruption and it goes on; `--help` lists the options
# of gans/study.py, which does the work.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -n "${VIRTUAL_ENV:-}" ] || [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
fi
"$PYTHON" -c "import comparison" 2>/dev/null || {
  echo "study.sh: error: the package \`comparison\` is missing: pip install -r requirements.txt" >&2
  exit 2
}
exec "$PYTHON" -u "$root/gans/study.py" "$@"
