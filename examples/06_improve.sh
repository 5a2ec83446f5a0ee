#!/usr/bin/env bash
# Train a model further on its own right answers: it answers the training questions several times,
# and what the checker of the evaluation accepts is trained on. See docs/guides/improving.md.
#
# bash examples/06_improve.sh
set -euo pipefail

# Sums whose answers can be checked; 40 of them are held out and only score the rounds.
mkdir -p runs
python - <<'END'
import json

sums = [{"prompt": f"{n} + {n + 7}", "completion": f"Answer: {2 * n + 7}"} for n in range(10, 110)]
for name, some in (("improve-train", sums[::5] + sums[1::5] + sums[2::5]), ("improve-held-out", sums[3::5])):
    with open(f"runs/{name}.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in some)
END

# A short training, which leaves something to improve.
tinkersmith train --set DATA_FILES=runs/improve-train.jsonl \
  --set EVAL_FILES=runs/improve-held-out.jsonl --set NUM_EPOCHS=4 --set EXPORT_AFTER_TRAINING=no

# One round: four answers to each question. The held-out score says whether it helped.
tinkersmith improve --rounds 1 --answers 4 --set SAMPLING_MAX_TOKENS=32
