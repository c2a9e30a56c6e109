#!/usr/bin/env bash
# `make run`: a supervisor, one session on the embedded model, its answer as it comes, and the list of sessions.
# A supervisor that is started here is stopped here, whatever happens; one that ran before is left alone.
set -euo pipefail
bin=$1

stop() { "$bin/athena-supervisor" stop >/dev/null || true; }

if ! "$bin/athena-supervisor" status >/dev/null 2>&1; then
    trap stop EXIT
    "$bin/athena-supervisor" start
fi
echo "> $PROMPT"
# The model is very small: it answers best without tools, without chance, and briefly.
"$bin/athena" run "$PROMPT" --provider local --tools none -o temperature=0 -o max_tokens=200
"$bin/athena" ls
