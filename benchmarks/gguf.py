"""The demo's model as GGUF files in llama.cpp: does it answer as the engine does?

Trains the demo (or takes `--project`), exports each type by llama.cpp's converter, and asks
llama-cpp-python the test questions: greedy answers, log-probabilities of prompt and answer, and the
tokens of the texts, each beside the engine's. llama-cpp-python comes from `--python`, or from an
environment of its own that is made once.

Writes benchmarks/results/gguf.json. Exits with 1 if F32, F16 or Q8_0 differ by more than they may.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.own_venv import own_python, version_of
from benchmarks.results_file import write_results
from tests.support.engine import no_proxy_for_loopback
from tinkersmith.cli.common import user_settings
from tinkersmith.data.samples import Source, alpaca_sample
from tinkersmith.export.download import base_folder
from tinkersmith.export.targets.gguf import export_gguf
from tinkersmith.export.targets.llama_cpp import gguf_logprobs
from tinkersmith.runs.trained_model import find_trained_model
from tinkersmith.service.connection import open_service
from tinkersmith.settings.fields import Settings
from tinkersmith.text.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
OWN_VENV = ROOT / ".venv" / "llama-cpp"
PACKAGE = "llama-cpp-python==0.3.36"
KINDS = ("F32", "F16", "BF16", "Q8_0")
# Mean differences of a log-probability that may be, and shares of answers that must agree.
LIMITS = {"F32": (0.001, 1.0), "F16": (0.02, 0.97), "Q8_0": (0.2, 0.8)}
QUESTIONS, LONGEST = 40, 128


def main() -> int:
    parser = options_of_demo(__doc__, "llama-cpp-python")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--llama-cpp", default="", help="a checkout of llama.cpp")
    options = parser.parse_args()
    no_proxy_for_loopback()
    python: Path = options.python or own_python(OWN_VENV, [PACKAGE])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        project: Path = (options.project or trained_demo(folder)).absolute()
        settings = user_settings("", [], project)
        asked = questions_of_demo(project, settings, options.questions)
        rows = {
            kind: measure(kind, settings, asked, folder / kind, python, options.llama_cpp)
            for kind in options.kinds
        }
    figures: dict[str, Any] = {
        "questions": len(asked["prompts"]),
        "right by the engine": sum(map(is_right, asked["engine texts"], asked["wanted"])),
        "llama-cpp-python": version_of(python, "llama-cpp-python"),
        "types": rows,
    }
    print(json.dumps(figures, indent=2))
    print("written:", write_results("gguf", "python -m benchmarks.gguf", figures))
    return (
        0 if all(is_within(kind, row, len(asked["prompts"])) for kind, row in rows.items()) else 1
    )


def options_of_demo(description: str | None, package: str) -> argparse.ArgumentParser:
    """The options of a benchmark that asks the trained demo in a program of `package`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument(
        "--project", type=Path, help="a trained project; default: the demo, trained"
    )
    parser.add_argument("--python", type=Path, help=f"one that has {package}")
    return parser


def is_within(kind: str, row: dict[str, Any], questions: int) -> bool:
    """Whether a file is as near to the engine as its type allows."""
    mean, share = LIMITS.get(kind, (float("inf"), 0.0))
    return (
        row["mean difference"] <= mean
        and row["answers that are the engine's"] >= share * questions
        and row["texts with the engine's tokens"] == 2 * questions
    )


def trained_demo(folder: Path) -> Path:
    """A new project with the demo's trained model."""
    project = folder / "demo"
    for words in (
        ["init", str(project)],
        ["split"],
        ["train", "--set", "EXPORT_AFTER_TRAINING=no"],
    ):
        here = folder if words[0] == "init" else project
        subprocess.run([sys.executable, "-m", "tinkersmith", *words], cwd=here, check=True)
    return project


def questions_of_demo(project: Path, settings: Settings, count: int) -> dict[str, Any]:
    """The first questions of the test set, and what the engine makes of them."""
    import tinker

    records = json.loads((project / "data" / "test_set.json").read_text(encoding="utf-8"))[:count]
    model = find_trained_model(settings)
    with open_service(model.settings, base_model=model.base_model) as service:
        tokenizer = load_tokenizer(base_folder(service, None, weights=False))
        template = model.template(tokenizer)
        end = tokenizer.special_tokens[template.end]
        texts = [
            template.render(
                alpaca_sample(r["instruction"], r.get("input", ""), r["output"], Source("", n))
            )
            for n, r in enumerate(records)
        ]
        prompts = [row.tolist() for row in tokenizer.encode_batch([text.prompt for text in texts])]
        wholes = [text.prompt + text.completion for text in texts]
        whole = [row.tolist() for row in tokenizer.encode_batch(wholes)]
        client = service.create_sampling_client(model.sampler_path)
        parameters = tinker.SamplingParams(max_tokens=LONGEST, temperature=0)
        inputs = [tinker.ModelInput.from_ints(tokens) for tokens in prompts]
        pending = [client.sample(tokens, 1, parameters) for tokens in inputs]
        answers = [list(service.wait(one, "sampling").sequences[0].tokens) for one in pending]
        scored = [client.compute_logprobs(tinker.ModelInput.from_ints(row)) for row in whole]
        logprobs = [list(service.wait(one, "scoring"))[1:] for one in scored]
        engine_texts = [tokenizer.decode(answer) for answer in answers]
    return {
        "prompts": prompts,
        "longest": LONGEST,
        "end": end,
        "texts": [text.prompt for text in texts] + wholes,
        "tokens": prompts + whole,
        "whole": whole,
        "answers": answers,
        "engine texts": engine_texts,
        "logprobs": logprobs,
        "records": records,
        "wanted": [record["answer"] for record in records],
    }


def measure(
    kind: str, settings: Settings, asked: dict[str, Any], out: Path, python: Path, llama_cpp: str
) -> dict[str, Any]:
    """A GGUF file of one type beside the engine."""
    folder = export_gguf(settings, kind, out=out, llama_cpp=llama_cpp, verify=False)
    [file] = folder.glob("*.gguf")
    tasks = out.parent / "tasks.json"
    tasks.write_text(
        json.dumps({name: asked[name] for name in ("prompts", "longest", "end", "texts")})
    )
    worker = Path(__file__).with_name("gguf_worker.py")
    done = subprocess.run(
        [python, str(worker), str(file), str(tasks)], capture_output=True, text=True, check=True
    )
    answered = json.loads(done.stdout.splitlines()[-1])
    theirs = gguf_logprobs(file, asked["whole"], str(python))
    pairs = [
        pair
        for ours, other in zip(asked["logprobs"], theirs, strict=True)
        for pair in zip(ours, other, strict=True)
    ]
    differences = [abs(a - b) for a, b in pairs]
    row = {
        "megabytes": round(file.stat().st_size / 1e6, 2),
        "answers that are the engine's": sum(
            a == b for a, b in zip(answered["answers"], asked["answers"], strict=True)
        ),
        "texts with the engine's tokens": sum(
            a == b for a, b in zip(answered["tokens"], asked["tokens"], strict=True)
        ),
        "tokens scored": len(differences),
        "largest difference": max(differences),
        "mean difference": sum(differences) / len(differences),
    }
    print(kind, json.dumps(row), flush=True)
    return row


def is_right(text: str, wanted: str) -> bool:
    return str(wanted) in text.rpartition("Answer:")[2] or str(wanted) in text.rpartition("答案")[2]


if __name__ == "__main__":
    sys.exit(main())
