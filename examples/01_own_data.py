"""Train on your own data: make a file, split it, train, and compare with the untouched model.

The fields of your records may have other names: docs/guides/data.md lists the shapes that are read.

python examples/01_own_data.py
"""

import json
import random
from pathlib import Path

from tinkersmith import evaluate, train

FOLDER = Path("runs/own-data")
SAMPLES = 100


def make_data(file: Path, count: int, prices: range) -> None:
    """Your own records stand here: what is asked, and the answer that you wish for."""
    chance = random.Random(count)
    with file.open("w", encoding="utf-8") as lines:
        for number in range(count):
            price = chance.choice(prices)
            question = f"One pen costs {price} coins. What is the code of order {number % 10}?"
            record = {"question": question, "answer": f"Answer: {number % 10}"}
            lines.write(json.dumps(record) + "\n")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    make_data(FOLDER / "train.jsonl", SAMPLES, prices=range(2, 10))
    make_data(FOLDER / "test.jsonl", 10, prices=range(11, 20))
    with train(
        base_model="tinkersmith/tiny-math",
        data_files=[str(FOLDER / "train.jsonl")],
        # Everything else has a default: docs/reference/settings.md.
        num_epochs=2,
        learning_rate=5e-3,
        export_after_training="no",
    ) as trained:
        print("The trained model:", trained.sampler_path)
        path = trained.sampler_path
    # The answers, one by one, are in evaluation_results.json and beside it.
    evaluate(
        model_path=path,
        test_file=str(FOLDER / "test.jsonl"),
        output_file=FOLDER / "results.json",
        compare_base=True,
    )


if __name__ == "__main__":
    main()
