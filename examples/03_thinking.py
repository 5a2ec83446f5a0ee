"""Train a model to think before it answers, and the same data without the thoughts.

A thought stands in a field of its own ("reasoning_content") or as <think>...</think> in the answer.
See docs/guides/conversations.md.

python examples/03_thinking.py
"""

import json
from pathlib import Path

from tinkersmith import train

FILE = Path("runs/thoughts.jsonl")
SAMPLES = 24


def sample(number: int) -> dict[str, object]:
    return {
        "messages": [
            {"role": "user", "content": f"What is {number} + {number}?"},
            {
                "role": "assistant",
                "reasoning_content": f"Twice {number} is {2 * number}.",
                "content": f"Answer: {2 * number}",
            },
        ]
    }


def main() -> None:
    FILE.parent.mkdir(exist_ok=True)
    lines = [json.dumps(sample(number)) for number in range(SAMPLES)]
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # "auto" trains thoughts where there are some, "strip" takes them away. The bundled model's
    # template knows no thoughts, so they are written as text; other templates have a form for them.
    for thinking in ("auto", "strip"):
        with train(
            base_model="tinkersmith/tiny-math",
            data_files=[str(FILE)],
            thinking=thinking,
            num_epochs=2,
            learning_rate=5e-3,
            export_after_training="no",
        ) as trained:
            print(f"THINKING={thinking}: mean loss of each epoch {trained.epoch_losses}")


if __name__ == "__main__":
    main()
