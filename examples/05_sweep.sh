#!/usr/bin/env bash
# Which learning rate and rank? Train every combination side by side on one server, and rank them.
# The table says which differences may be noise. See docs/guides/sweeps.md.
#
# bash examples/05_sweep.sh
set -euo pipefail

# 60 samples are enough to see how it works; leave this out for a real answer.
mkdir -p runs
python - > runs/sweep-data.jsonl <<'END'
import json

for number in range(60):
    record = {"prompt": f"{number} + {number}", "completion": f"Answer: {2 * number}"}
    print(json.dumps(record))
END

# Ranking needs a measurement: here, the loss on a quarter of the samples, which are held out.
tinkersmith sweep \
  --grid LEARNING_RATE=2e-3,1e-2 \
  --set DATA_FILES=runs/sweep-data.jsonl \
  --set VALIDATION_RATIO=0.25 \
  --set NUM_EPOCHS=1
