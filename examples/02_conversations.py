"""Train on conversations: which answers are trained on, and which are only read.

A message with "weight": 0 is read, but not imitated. See docs/guides/conversations.md.

python examples/02_conversations.py
"""

import json
from pathlib import Path

from tinkersmith import train

FILE = Path("runs/conversations.jsonl")
SAMPLES = 40


def conversation(number: int) -> dict[str, object]:
    return {
        "messages": [
            {"role": "system", "content": "You count."},
            {"role": "user", "content": f"What comes after {number}?"},
            # A wrong answer that the user puts right: the model should not learn to give it.
            {"role": "assistant", "content": f"Answer: {number}", "weight": 0},
            {"role": "user", "content": "No, the next one."},
            {"role": "assistant", "content": f"Answer: {number + 1}"},
        ]
    }


def main() -> None:
    FILE.parent.mkdir(exist_ok=True)
    lines = [json.dumps(conversation(number)) for number in range(SAMPLES)]
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # To see the tokens that are trained on:
    # tinkersmith preview runs/conversations.jsonl --base-model tinkersmith/tiny-math
    with train(
        base_model="tinkersmith/tiny-math",
        data_files=[str(FILE)],
        train_on="all",  # every answer; "last" takes the last one only
        num_epochs=2,
        learning_rate=5e-3,
        export_after_training="no",
    ) as trained:
        print(f"Mean loss of each epoch: {trained.epoch_losses}")
        print("The answer to the first conversation:", trained.answers)


if __name__ == "__main__":
    main()
