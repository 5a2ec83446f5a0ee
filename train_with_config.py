"""Fine-tune a LoRA with the settings of config.py.

python train_with_config.py
python train_with_config.py --config other.py --set NUM_EPOCHS=3
python train_with_config.py --resume my-model-20260101-120000
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    from tinkersmith.cli.front_door import run_front_door
    from tinkersmith.cli.train import train_command

    config = Path(__file__).resolve().parent / "config.py"
    sys.exit(run_front_door(lambda: train_command(config=config)))
