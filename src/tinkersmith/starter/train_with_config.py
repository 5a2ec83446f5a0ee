"""Fine-tune a LoRA with the settings of config.py, which lies beside this script.

python train_with_config.py
python train_with_config.py --config other.py --set NUM_EPOCHS=3
python train_with_config.py --resume my-model-20260101-120000
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    from tinkersmith.cli.entry_point import run_entry_point
    from tinkersmith.cli.training.train import train_command

    folder = Path(__file__).resolve().parent
    sys.exit(run_entry_point(lambda: train_command(folder=folder)))
