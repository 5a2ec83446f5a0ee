"""Serve a trained model through OpenAI's and Anthropic's API.

python serve_model.py
python serve_model.py my-run exported/other-adapter
"""

import sys
from pathlib import Path

# Relative names of files start from the folder of this script.

# Runs, tinker:// paths or exported folders, all of one base model; [] is the newest run. A name
# of your own stands before it: "support=exported/my-adapter".
MODELS = []

# Which checkpoint of a run: "best", "last" or a name such as "step-000400"; "" is the best if
# training measured one (BEST_BY in config.py), else the last.
CHECKPOINT = ""

# The port of http://127.0.0.1:PORT/v1.
PORT = 8001

if __name__ == "__main__":
    from tinkersmith.cli.entry_point import run_entry_point
    from tinkersmith.cli.models.serve import serve_command

    sys.exit(
        run_entry_point(
            lambda: serve_command(
                models=MODELS,
                checkpoint=CHECKPOINT,
                port=PORT,
                folder=Path(__file__).resolve().parent,
            )
        )
    )
