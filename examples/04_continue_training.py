"""Go on from an earlier checkpoint of a run, with another learning rate.

An interrupted run needs only `train(resume=NAME)`: it reaches the same losses as if it had never
been interrupted. See docs/guides/own-machine.md.

python examples/04_continue_training.py
"""

import json
from pathlib import Path

from tinkersmith import train

FILE = Path("runs/doubles.jsonl")
SAMPLES = 40


def main() -> None:
    FILE.parent.mkdir(exist_ok=True)
    records = [{"prompt": f"{n} + {n}", "completion": f"Answer: {2 * n}"} for n in range(SAMPLES)]
    FILE.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    with train(
        base_model="tinkersmith/tiny-math",
        data_files=[str(FILE)],
        num_epochs=2,
        learning_rate=5e-3,
        export_after_training="no",
    ) as trained:
        name = trained.run.name
        first = trained.run.checkpoints()[0].name
        before = trained.epoch_losses
    # What came after that checkpoint is set aside in the run's folder, and not lost.
    with train(resume=name, from_checkpoint=first, resume_with={"LEARNING_RATE": 1e-2}) as trained:
        print(f"Mean loss of the last epoch: {before[-1]:.3f}, then {trained.epoch_losses[-1]:.3f}")


if __name__ == "__main__":
    main()
