"""Score a trained model on a test set: exact match, final answer, and answer contained.

python evaluate_model.py
python evaluate_model.py --compare-base
"""

import sys
from pathlib import Path

# Relative names of files start from the folder of this script.

# The tinker:// path of a trained model; "" is a checkpoint of the newest run.
MODEL_PATH = ""

# Which one: "best", "last" or a name such as "step-000400"; "" is the best if training measured
# one (BEST_BY in config.py), else the last.
CHECKPOINT = ""

# The samples to answer: a JSON array or JSON Lines, in the format of the training data.
TEST_DATA_FILE = "data/test_set.json"

# The model that MODEL_PATH was trained on; "" is what its run says.
BASE_MODEL = ""

# Score the untouched base model on the same samples as well.
COMPARE_BASE = False

# Use only this many samples; 0 is all of them.
LIMIT = 0

# Where scores, settings and every single answer are written.
OUTPUT_FILE = "evaluation_results.json"

# config.py says how answers are sampled: SAMPLING_MAX_TOKENS, SAMPLING_TEMPERATURE and others.

if __name__ == "__main__":
    from tinkersmith.cli.entry_point import run_entry_point
    from tinkersmith.cli.results.evaluate import evaluate_command

    sys.exit(
        run_entry_point(
            lambda: evaluate_command(
                model_path=MODEL_PATH,
                checkpoint=CHECKPOINT,
                test_file=TEST_DATA_FILE,
                base_model=BASE_MODEL,
                compare_base=COMPARE_BASE,
                limit=LIMIT,
                output_file=OUTPUT_FILE,
                folder=Path(__file__).resolve().parent,
            )
        )
    )
