"""Export a trained model: as a PEFT adapter, or merged into a full model.

python export_model.py
python export_model.py --merged --out exported/my-model
"""

import sys
from pathlib import Path

# Relative names of files start from the folder of this script.

# The tinker:// path of a trained model; "" is a checkpoint of the newest run.
MODEL_PATH = ""

# Which one: "best", "last" or a name such as "step-000400"; "" is the best if training measured
# one (BEST_BY in config.py), else the last.
CHECKPOINT = ""

# False writes the LoRA alone, in PEFT's format; True writes a full model with the LoRA merged in.
MERGED = False

# The folder to write; "" is exported/<name of the run>-adapter or -merged.
OUTPUT = ""

# The model that MODEL_PATH was trained on; "" is what its run says.
BASE_MODEL = ""

# The address of a server that serves the export, such as "http://127.0.0.1:8000/v1": nothing is
# exported then, and its answers are compared with the export's. "" exports.
PROVE = ""

# The export's name on that server; "" is the only model there.
PROVE_MODEL = ""

if __name__ == "__main__":
    from tinkersmith.cli.entry_point import run_entry_point
    from tinkersmith.cli.models.export import export_command

    sys.exit(
        run_entry_point(
            lambda: export_command(
                model_path=MODEL_PATH,
                checkpoint=CHECKPOINT,
                merged=MERGED,
                output=OUTPUT,
                base_model=BASE_MODEL,
                prove=PROVE,
                prove_model=PROVE_MODEL,
                folder=Path(__file__).resolve().parent,
            )
        )
    )
