"""Run a command beside busy processes: python tools/beside_load.py NUMBER COMMAND ...

A test that fails only then holds a hidden clock. The exit code is the command's.
"""

import subprocess
import sys

_BUSY = "while True: pass"


def main() -> int:
    """Start the busy processes, run the command, and end them whatever it did."""
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        print(__doc__, file=sys.stderr)
        return 2
    busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(int(sys.argv[1]))]
    try:
        return subprocess.run(sys.argv[2:]).returncode
    finally:
        for process in busy:
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
