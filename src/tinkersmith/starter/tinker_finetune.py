"""The whole training job as one script. Copy it, change the settings at its top, and run it.

python tinker_finetune.py
"""

import argparse
import sys
from pathlib import Path

# What to train on: JSON arrays or JSON Lines with "instruction", "input" and "output".
# Relative names of files start from the folder of this script.
DATA_FILES = ["data/train_set.json"]

# The model to start from, and the name of the trained one.
BASE_MODEL = "tinkersmith/tiny-math"
MODEL_NAME_PREFIX = "my-model"

# The adapter and its training. 5e-3 suits only the tiny bundled model; use 1e-4 to 5e-4 for models
# of 1 billion parameters and more.
LORA_RANK = 16
LEARNING_RATE = 5e-3
NUM_EPOCHS = 2
BATCH_SIZE = 8

# Samples that are too long: cut their end (True) or skip them (False).
MAX_SEQUENCE_LENGTH = 16384
TRUNCATE_LONG_SEQUENCES = True
SHOW_LENGTH_WARNINGS = True

# Answers of the trained model.
SAMPLING_MAX_TOKENS = 1024
SAMPLING_TEMPERATURE = 0.0
SAMPLING_NUM_SAMPLES = 1

# "ask", "no", "adapter" or "merged".
EXPORT_AFTER_TRAINING = "ask"

# Each run gets a folder of its own in this one.
OUTPUT_DIR = "runs"


def main() -> None:
    from tinkersmith import train
    from tinkersmith.cli.training.train import offer_export
    from tinkersmith.settings.reading import settings_from

    argparse.ArgumentParser(
        description="Fine-tune a LoRA with the settings at the top of this script. Change them "
        "there; config.py explains them."
    ).parse_args()
    folder = Path(__file__).resolve().parent
    settings = settings_from(globals(), where=__file__, folder=folder)
    with train(settings) as trained:
        print(f"Loss of each epoch: {[round(loss, 4) for loss in trained.epoch_losses]}")
    offer_export(settings.export_after_training, trained.state_path, settings, folder=folder)


if __name__ == "__main__":
    from tinkersmith.cli.entry_point import run_entry_point

    sys.exit(run_entry_point(main))
