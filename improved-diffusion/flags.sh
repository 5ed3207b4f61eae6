#!/usr/bin/env bash
# The project's flags (PRESET=seed|paper|gpu|cpu|quick); source this file from any folder.
. "$(dirname "${BASH_SOURCE[0]:-$0}")/../flags.sh"
