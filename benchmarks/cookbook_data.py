"""The data sets and the model that tinker-cookbook's recipes name, small and made on the spot.

`datasets.load_dataset` and the cookbook's `get_tokenizer` both take a name that is a folder under
the working directory for that folder, so recipes started in this world need no hub.
"""

import csv
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinkersmith.bundled import BUNDLED_MODELS

_BUNDLED = "tinkersmith/tiny-math"
CONTEXT = 4096  # the bundled model's own 1024 is less than some recipes' instructions
MODELS = (
    "Qwen/Qwen3.5-4B",
    "Qwen/Qwen3.5-9B",
    "Qwen/Qwen3.5-9B-Base",
    "Qwen/Qwen3.5-397B-A17B",
    "Qwen/Qwen3.6-27B",
    "Qwen/Qwen3.6-35B-A3B",
    "Qwen/Qwen3.8-27B",
    "Qwen/Qwen3-4B-Instruct-2507",
    "Qwen/Qwen3-8B",
)
SEEING = "Qwen/Qwen3-VL-30B-A3B-Instruct"  # a name with a renderer for images
_COLOURS = {"anchor": (220, 40, 40), "beaver": (40, 40, 220)}  # of classes of pictures
_THINKING = ("<think>", "</think>")  # single tokens, as the cookbook's renderers want them

Row = dict[str, Any]


def make_model(folder: Path) -> Path:
    """The bundled model with a longer context and two more tokens."""
    import torch
    from safetensors.torch import load_file, save_file
    from tokenizers import AddedToken, Tokenizer

    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(BUNDLED_MODELS[_BUNDLED], folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = CONTEXT
    config["vocab_size"] += len(_THINKING)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in _THINKING])
    tokenizer.save(str(folder / "tokenizer.json"))
    tensors = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    rare = tensors[name].mean(0, keepdim=True).expand(len(_THINKING), -1)
    tensors[name] = torch.cat([tensors[name], rare])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_data(world: Path, model: Path) -> None:
    """Fill `world` with the models and data sets by their hub names."""
    rng = random.Random(0)
    for name in MODELS:
        link = world / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(model)
    make_splits(world / "HuggingFaceH4" / "no_robots", rng, _conversation, train=256, test=128)
    make_splits(world / "allenai" / "tulu-3-sft-mixture", rng, _conversation, train=1060)
    make_splits(world / "open-thoughts" / "OpenThoughts3-1.2M", rng, _thoughts, train=32)
    gsm8k = lambda rng: {"question": _sum(rng)[0], "answer": f"So:\n#### {_sum(rng)[1]}"}  # noqa: E731
    make_splits(world / "openai" / "gsm8k", rng, gsm8k, "main", train=32, test=4)
    make_splits(world / "HuggingFaceH4" / "MATH-500", rng, _problem, "default", test=8)
    make_splits(world / "EleutherAI" / "hendrycks_math", rng, _problem, "algebra", train=8, test=8)
    make_splits(world / "zwhe99" / "DeepMath-103K", rng, _problem, train=32, test=4)
    make_splits(world / "Anthropic" / "hh-rlhf", rng, _preference, train=16, test=8)
    make_splits(world / "Salesforce" / "wikitext", rng, _article, "wikitext-103-raw-v1", train=1900)
    make_splits(world / "hicai-zju" / "SciKnowEval", rng, _quiz, test=40)
    make_splits(world / "tangqiaoyu" / "ToolAlpaca", rng, _tool_use, train=40)
    make_splits(world / "prometheus-eval" / "Feedback-Collection", rng, _graded, train=8)
    _write_programs(world / "agentica-org" / "DeepCoder-Preview-Dataset", rng)
    _write(world / "sums.jsonl", [_conversation(rng) for _ in range(16)])
    examples = world / "tinker_cookbook" / "example_data"
    examples.mkdir(parents=True, exist_ok=True)
    for name in ("example_rubric_train", "example_rubric_test"):
        _write(examples / f"{name}.jsonl", [_rubric(rng) for _ in range(8)])
    (examples / "multilingual.txt").write_text("Guten Tag.\nGood morning.\nBuenos días.\n")
    _write_arena(world / "arena.csv", rng)
    _write_continual(world / "continual", rng)


def make_pictures(world: Path, **counts: int) -> None:
    """The data set of vlm_classifier: pictures of two colours, one for each class."""
    import numpy as np
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Pictures
    from PIL import Image

    folder = world / "dpdl-benchmark" / "caltech101"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    features = Features({"image": Pictures(), "label": ClassLabel(names=list(_COLOURS))})
    for split, count in counts.items():
        labels = [number % len(_COLOURS) for number in range(count)]
        files: list[dict[str, bytes]] = []
        for label in labels:
            width, height = rng.integers(20, 40, 2)
            values = rng.normal(list(_COLOURS.values())[label], 15, (height, width, 3))
            file = io.BytesIO()
            Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(file, "PNG")
            files.append({"bytes": file.getvalue()})
        rows = {"image": files, "label": labels}
        Dataset.from_dict(rows, features).to_parquet(folder / f"{split}.parquet")


def make_splits(
    folder: Path,
    rng: random.Random,
    row: Callable[[random.Random], Row],
    config: str | None = None,
    **counts: int,
) -> None:
    """A data set of JSON lines, with a card that names its configuration if it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        _write(folder / f"{split}.jsonl", [row(rng) for _ in range(count)])
    if config is not None:
        files = "".join(f"  - split: {name}\n    path: {name}.jsonl\n" for name in counts)
        card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n"
        (folder / "README.md").write_text(card)


def _write(file: Path, rows: list[Row]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _sum(rng: random.Random) -> tuple[str, int]:
    x, y = rng.randint(0, 20), rng.randint(0, 20)
    return f"What is {x} + {y}?", x + y


def _conversation(rng: random.Random) -> Row:
    question, answer = _sum(rng)
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": str(answer)},
        ]
    }


def _thoughts(rng: random.Random) -> Row:
    question, answer = _sum(rng)
    return {
        "conversations": [
            {"from": "human", "value": question},
            {"from": "gpt", "value": f"<think>\nI add.\n</think>\n{answer}"},
        ]
    }


def _problem(rng: random.Random) -> Row:
    question, answer = _sum(rng)
    return {
        "problem": question,
        "question": question,
        "solution": f"It is \\boxed{{{answer}}}.",
        "answer": str(answer),
        "final_answer": str(answer),
    }


def _preference(rng: random.Random) -> Row:
    question, answer = _sum(rng)
    asked = f"\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": f"{asked}{answer}", "rejected": f"{asked}I do not know."}


def _article(rng: random.Random) -> Row:
    words = ("the", "sum", "of", "two", "numbers", "is", "never", "small", "or", "red")
    return {"text": " ".join(rng.choices(words, k=60))}


def _quiz(rng: random.Random) -> Row:
    question, _ = _sum(rng)
    return {
        "domain": "Chemistry",
        "details": {"level": "L3"},
        "type": "mcq-4-choices",
        "question": question,
        "choices": {"text": ["1", "2", "3", "4"], "label": ["A", "B", "C", "D"]},
        "answerKey": "A",
    }


def _tool_use(rng: random.Random) -> Row:
    question, answer = _sum(rng)
    return {"instruction": question, "output": str(answer)}


def _graded(rng: random.Random) -> Row:
    question, answer = _sum(rng)
    scores = {f"orig_score{score}_description": f"It earns {score}." for score in range(1, 6)}
    return {
        "orig_instruction": question,
        "orig_criteria": "Is the sum right?",
        "orig_reference_answer": str(answer),
        **scores,
    }


def _rubric(rng: random.Random) -> Row:
    question, answer = _sum(rng)
    return {
        "convo": [{"role": "user", "content": question}],
        "rubric_items": [
            {
                "rubric_str": f"Is the answer {answer}?",
                "extraction_regex": r"<score>(.*)</score>",
                "grader_output_format_instruction": "Write <score>0</score> or <score>1</score>.",
            }
        ],
    }


def _program(rng: random.Random) -> Row:
    question, answer = _sum(rng)
    tests = [{"input": "", "output": str(answer), "testtype": "stdin_stdout"}]
    return {"problem": f"Print the result: {question}", "tests": json.dumps(tests)}


def _write_programs(folder: Path, rng: random.Random) -> None:
    """Tasks for programs, in the configurations and splits that the cookbook asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    card = "---\nconfigs:\n"
    for config, splits in (
        ("primeintellect", ("train",)),
        ("taco", ("train",)),
        ("lcbv5", ("train", "test")),
        ("codeforces", ("test",)),
    ):
        card += f"- config_name: {config}\n  data_files:\n"
        for split in splits:
            _write(folder / f"{config}-{split}.jsonl", [_program(rng) for _ in range(4)])
            card += f"  - split: {split}\n    path: {config}-{split}.jsonl\n"
    (folder / "README.md").write_text(card + "---\n")


def _write_arena(file: Path, rng: random.Random) -> None:
    """Binary markets on both sides of the recipe's date of splitting, as Prophet Arena's table."""
    columns = (
        *("submission_id", "event_ticker", "title", "snapshot_time", "close_time"),
        *("market_outcome", "category", "markets", "sources"),
    )
    with file.open("w", newline="") as target:
        writer = csv.DictWriter(target, columns)
        writer.writeheader()
        for number in range(24):
            month = 9 if number % 2 else 11  # the split is at 20 October 2025
            question, _ = _sum(rng)
            writer.writerow(
                {
                    "submission_id": f"s{number}",
                    "event_ticker": f"E{number}",
                    "title": question,
                    "snapshot_time": f"2025-{month:02}-01T00:00:00Z",
                    "close_time": f"2025-{month:02}-05T00:00:00Z",
                    "market_outcome": json.dumps({f"Market {number}": rng.randint(0, 1)}),
                    "category": "Sums",
                    "markets": json.dumps([f"Market {number}"]),
                    "sources": json.dumps(
                        [{"title": "News", "summary": "It is likely.", "ranking": 1}]
                    ),
                }
            )


def _write_continual(folder: Path, rng: random.Random) -> None:
    """Arrow folders of sdft.run_continual_learning: tool use, then science."""
    from datasets import Dataset

    tools, science = folder / "tooluse_data", folder / "science_data"
    if folder.exists():
        shutil.rmtree(folder)
    questions = [_sum(rng) for _ in range(8)]
    use = [{"prompt": text, "golden_response": [str(answer)]} for text, answer in questions]
    Dataset.from_list(use).save_to_disk(tools / "train_data")
    wanted = [{"Action": "add", "Action_Input": "{}"}]
    asked_tools = [{"prompt": text, "golden_answer": wanted} for text, _ in questions]
    Dataset.from_list(asked_tools).save_to_disk(tools / "eval_data")
    asked = [
        {
            "messages": [
                {"role": "system", "content": "Answer."},
                {"role": "user", "content": text},
            ],
            "output_text": f"<answer>{answer}</answer>",
        }
        for text, answer in questions
    ]
    Dataset.from_list(asked).save_to_disk(science / "train_data")
    tested = [
        {"prompt": row["messages"], "answer": str(answer)}
        for row, (_, answer) in zip(asked, questions, strict=True)
    ]
    Dataset.from_list(tested).save_to_disk(science / "eval_data")
