"""Merge data files, shuffle them by seed, and write a training and a test file.

python split_dataset.py
python split_dataset.py --inputs a.json b.jsonl --ratio 0.9 --seed 7
"""

import sys
from pathlib import Path

# Relative names of files start from the folder of this script.

# The files to merge: JSON arrays or JSON Lines, also gzip-ed.
INPUT_FILES = ["data/word_problems.json"]

# The share of the samples that goes into the training file; the others are for testing.
TRAIN_RATIO = 0.8

# Another seed gives another split; the same seed always gives the same files, byte for byte.
SEED = 42

# The two files to write. config.py trains on the first, evaluate_model.py tests on the second.
TRAIN_FILE = "data/train_set.json"
TEST_FILE = "data/test_set.json"

if __name__ == "__main__":
    from tinkersmith.cli.data.split import split_command
    from tinkersmith.cli.entry_point import run_entry_point

    sys.exit(
        run_entry_point(
            lambda: split_command(
                inputs=INPUT_FILES,
                ratio=TRAIN_RATIO,
                seed=SEED,
                train_out=TRAIN_FILE,
                test_out=TEST_FILE,
                folder=Path(__file__).resolve().parent,
            )
        )
    )
