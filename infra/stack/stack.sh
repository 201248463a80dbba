#!/usr/bin/env bash
# The whole platform on loopback, without containers: see `stack.sh --help` and docs/platform.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${STACK_PYTHON:-$here/../../.venv/bin/python} # the one that has Ray and MLflow
[ -x "$python" ] || python=$(command -v python || command -v python3)
exec "$python" "$here/stack.py" "$@"
