"""The process of one block: python -m benchmarks.gpu.worker RESULT-FILE MODULE:FUNCTION ARGUMENTS

Imports the block's module, waits for a line on standard input, does the work, and writes the result
after every step of it. Ends when standard input is closed: its runner has gone.
"""

import json
import logging
import os
import sys
import threading
import traceback
from importlib import import_module
from typing import Any

from benchmarks.gpu.runner import Wrong, reason_of
from tinkersmith.files import write_json


def main() -> None:
    path, name, arguments = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    module, _, function = name.partition(":")
    work = getattr(import_module(module), function)
    if not sys.stdin.readline():
        return
    threading.Thread(target=_end_with_runner, daemon=True).start()
    result: dict[str, Any] = {"status": "running", "figures": {}}
    try:
        for figures in work(**json.loads(arguments)):
            result["figures"] = figures
            write_json(path, result)
        result |= {"status": "ok"}
    except Wrong as error:
        result |= {"status": "wrong", "reason": str(error)}
    except Exception as error:
        traceback.print_exc()
        result |= {"status": "failed", "reason": reason_of(error)}
    write_json(path, result)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a GPU's driver or a library may hang at a normal exit


def _end_with_runner() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
