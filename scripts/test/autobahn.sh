#!/usr/bin/env bash
# autobahn.sh [RUNNER [OUT]]: the Autobahn WebSocket suite against an echo server on the gateway's frame layer.
# RUNNER (or $AUTOBAHN_RUNNER) is called as `RUNNER URL OUT [CASES [EXCLUDE]]`, prints what is not OK and fails
# when a case failed. $AUTOBAHN_CASES and $AUTOBAHN_EXCLUDE are handed on; $PYTHON is the interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."
runner=${1:-${AUTOBAHN_RUNNER:-}}
[[ -n $runner ]] || { sed -n '2,4s/^# //p' "$0"; exit 2; }
[[ -x $runner ]] || { echo "autobahn.sh: $runner cannot be run" >&2; exit 2; }
out=$(mkdir -p "${2:-build/autobahn}" && cd "${2:-build/autobahn}" && pwd)
exec 3< <(PYTHONPATH=src exec "${PYTHON:-python3}" scripts/test/autobahn_echo.py)
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
read -r -t 20 url <&3 || { echo "autobahn.sh: the echo server did not start" >&2; exit 1; }
args=("$url" "$out")
if [[ -n ${AUTOBAHN_CASES:-} || -n ${AUTOBAHN_EXCLUDE:-} ]]; then args+=("${AUTOBAHN_CASES:-*}"); fi
if [[ -n ${AUTOBAHN_EXCLUDE:-} ]]; then args+=("$AUTOBAHN_EXCLUDE"); fi
"$runner" "${args[@]}"
