"""The whole job as one script: copy it, change the settings, run it.

python tinker_finetune.py
"""

import sys

# What to train on: JSON arrays or JSON Lines with "instruction", "input" and "output".
DATA_FILES = ["data/train_set.json"]

# The model to start from, and the name of what comes out.
BASE_MODEL = "tinkersmith/tiny-math"
MODEL_NAME_PREFIX = "my-model"

# The adapter and its training. 5e-3 suits only the tiny bundled model; real ones want 1e-4 to 5e-4.
LORA_RANK = 16
LEARNING_RATE = 5e-3
NUM_EPOCHS = 2
BATCH_SIZE = 8

# Samples that are too long: cut their end (True) or leave them out (False).
MAX_SEQUENCE_LENGTH = 16384
TRUNCATE_LONG_SEQUENCES = True
SHOW_LENGTH_WARNINGS = True

# Answers of the tuned model.
SAMPLING_MAX_TOKENS = 512
SAMPLING_TEMPERATURE = 0.0
SAMPLING_NUM_SAMPLES = 1

# "ask", "no", "adapter" or "merged".
EXPORT_AFTER_TRAINING = "ask"


def main() -> None:
    from tinkersmith import train
    from tinkersmith.cli.train import offer_export
    from tinkersmith.settings import settings_from

    settings = settings_from(globals())
    with train(settings) as trained:
        print(f"Loss of each epoch: {[round(loss, 4) for loss in trained.epoch_losses]}")
    offer_export(settings.export_after_training, trained.state_path, settings)


if __name__ == "__main__":
    from tinkersmith.cli.front_door import run_front_door

    sys.exit(run_front_door(main))
