"""llama.cpp's own HTTP server as a program: ``python -m athena.providers.local_server --model FILE``.

It is a process of its own because llama.cpp is one global state with its own threads, and several sessions share it. It
listens on loopback only, asks for the key in ``ATHENA_LOCAL_KEY``, and prints one JSON line on standard output when it
is ready: ``{"ready": true, "base_url": ..., "model": ...}``. It ends on SIGTERM, and when its standard input, if that
is a pipe, is closed (noticed at the latest when the model is loaded, for loading holds the interpreter): so it cannot
outlive who started it, however that one died.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import stat
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

KEY_VARIABLE = "ATHENA_LOCAL_KEY"
MODEL_ALIAS = "local"
_EXIT_USAGE = 64
_EXIT_MODEL = 65
_LOG_VERBOSITY = 1  # errors and warnings; above it llama.cpp writes several lines per request


def main() -> None:
    """Serve until told to stop. Exit codes: 0 stopped, 64 wrong use, 65 the model cannot be loaded."""
    args = _arguments()
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        _give_up(_EXIT_USAGE, f"{KEY_VARIABLE} is not set; the server refuses to run without a key")
    if not args.model.is_file():
        _give_up(_EXIT_USAGE, f"no model file at {str(args.model)!r}")
    # While the model loads, the default action of SIGTERM ends us at once; there is nothing to tidy up.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _watch_standard_input()
    server = _load(args, key)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ready = {"ready": True, "base_url": server.listening_address, "model": MODEL_ALIAS}
    try:
        print(json.dumps(ready), flush=True)
    except BrokenPipeError:
        os._exit(0)  # who asked for us is gone already
    stop.wait()
    # Not a return: tearing the server down waits for running generations, and nothing in here needs saving.
    os._exit(0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m athena.providers.local_server", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a .gguf file")
    parser.add_argument("--ctx", type=int, default=8192, help="context in tokens, shared by the slots")
    parser.add_argument("--slots", type=int, default=2, help="requests served at the same time")
    parser.add_argument("--threads", type=int, default=2, help="threads that compute")
    return parser.parse_args()


def _give_up(code: int, why: str) -> NoReturn:
    print(f"local_server: {why}", file=sys.stderr, flush=True)
    os._exit(code)


def _load(args: argparse.Namespace, key: str) -> Any:
    try:
        import xllamacpp  # native and heavy: only after the arguments are known to be right
    except ImportError as exc:
        _give_up(_EXIT_MODEL, f"xllamacpp cannot be imported: {exc}")
    params = xllamacpp.CommonParams()
    params.model.path = str(args.model)
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [key]
    params.n_ctx = args.ctx
    params.n_parallel = args.slots
    # Pinned, because llama.cpp's default takes every core for each of its pools.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.model_alias = {MODEL_ALIAS}
    params.endpoint_metrics = True
    params.offline = True
    params.ui = False
    params.verbosity = _LOG_VERBOSITY
    try:
        return xllamacpp.Server(params)
    except (RuntimeError, ValueError, OSError) as exc:
        _give_up(_EXIT_MODEL, f"{str(args.model)!r} cannot be served: {exc}")


def _watch_standard_input() -> None:
    """End this process when the other end of a piped standard input is closed."""
    mode = os.fstat(0).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):  # asyncio gives its children a socket pair
        return

    def follow() -> None:
        while os.read(0, 4096):
            pass  # nothing is ever said to us; only the end matters
        os._exit(0)

    threading.Thread(target=follow, name="stdin", daemon=True).start()


if __name__ == "__main__":
    main()
