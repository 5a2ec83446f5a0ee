"""`python -m tinkersmith` runs the command `tinkersmith`."""

import sys

from tinkersmith.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
