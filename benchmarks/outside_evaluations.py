"""lm_eval and Inspect, unchanged, against `tinkersmith serve`: do they see the engine's answers?

The server is a process of its own with the bundled model. The tasks are local files that this
script writes. Each greedy answer must be the one that the SDK samples from another engine for the
same tokens, and each log-likelihood the one that the SDK computes there. No network is used, but
for the packages of the two programs where `--python` names none that has them.

Writes benchmarks/results/outside_evaluations.json. Exits with 1 if an answer differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.own_venv import own_python
from benchmarks.results_file import write_results
from benchmarks.serving import BUNDLED, ROOT, read_prompts, running_serve
from tests.support.engine import no_proxy_for_loopback, running_engine
from tinkersmith.bundled import BUNDLED_MODELS

# No torch: lm_eval needs transformers' tokenizers only.
PACKAGES = ("lm-eval[api]==0.4.13", "inspect-ai==0.3.285", "openai", "transformers")
OWN_VENV = ROOT / "build" / "outside-evaluations"
QUESTIONS = 24
ANSWER_TOKENS = 96
END = "<|endoftext|>"  # the bundled model's end token
# Both sides compute in float32, but with other prompts beside them in a batch.
LARGEST_DIFFERENCE = 1e-3

GENERATED = """
task: sums_written
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{data}"}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["{end}"]
  max_gen_toks: {tokens}
  temperature: 0
filter_list:
  - name: answer
    filter:
      - function: regex
        regex_pattern: "(?:Answer: |答案：)(.*)"
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
CHOSEN = """
task: sums_chosen
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{data}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{right}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
INSPECT = """
import json

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes


@task
def sums():
    lines = open({data!r}, encoding="utf-8").read().splitlines()
    rows = [json.loads(line) for line in lines]
    return Task([Sample(row["prompt"], target=row["answer"]) for row in rows], scorer=includes())
"""
VERSIONS = """
import json
from importlib.metadata import version
print(json.dumps({name: version(name) for name in ("lm-eval", "inspect-ai")}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument(
        "--python",
        type=Path,
        help="one that has the programs; default: that of an environment in "
        f"{OWN_VENV.relative_to(ROOT)}, which is made if it is not there",
    )
    options = parser.parse_args()
    no_proxy_for_loopback()
    python: Path = options.python or own_python(OWN_VENV, PACKAGES)
    versions = json.loads(output_of([str(python), "-c", VERSIONS], ROOT))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = write_tasks(folder, options.questions)
        with running_serve(BUNDLED, folder) as port:
            written, chosen, scores = ask_lm_eval(python, folder, port)
            chats, scores["inspect accuracy"] = ask_inspect(python, folder, port)
        figures = compare(folder, rows, written, chosen, chats)
    figures |= {"programs": versions, "scores": scores}
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    command = f"python -m benchmarks.outside_evaluations --questions {options.questions}"
    print("written:", write_results("outside_evaluations", command, figures))
    return 0 if is_equal(figures, options.questions) else 1


def output_of(command: Sequence[str], folder: Path, **more: str) -> str:
    """What a program prints, without a network.

    Raises:
        SystemExit: it fails, or takes too long.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), **more}
    environment = {name: text for name, text in environment.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} fails:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def write_tasks(folder: Path, count: int) -> list[dict[str, Any]]:
    """The questions, with the tasks of both programs beside them."""
    problems = json.loads((ROOT / "data" / "word_problems.json").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = []
    for prompt, problem in zip(read_prompts(count), problems, strict=False):
        choices = [problem["output"], problem["output"][::-1], f"Answer: {problem['answer']}"]
        rows.append({"prompt": prompt, "answer": problem["answer"], "choices": choices, "right": 0})
    data = folder / "questions.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    tasks = folder / "tasks"
    tasks.mkdir()
    filled = GENERATED.format(data=data, end=END, tokens=ANSWER_TOKENS)
    (tasks / "written.yaml").write_text(filled, encoding="utf-8")
    (tasks / "chosen.yaml").write_text(CHOSEN.format(data=data), encoding="utf-8")
    (folder / "sums.py").write_text(INSPECT.format(data=str(data)), encoding="utf-8")
    return rows


# ---- the two programs


def ask_lm_eval(
    python: Path, folder: Path, port: int
) -> tuple[dict[str, str], dict[tuple[str, str], tuple[float, bool]], dict[str, float]]:
    """The answers by prompt, the log-likelihoods by prompt and continuation, and the scores."""
    model = {
        "model": BUNDLED,
        "base_url": f"http://127.0.0.1:{port}/v1/completions",
        "tokenizer": str(BUNDLED_MODELS[BUNDLED]),
        "num_concurrent": "4",
    }
    command = [
        *(str(python), "-m", "lm_eval", "--model", "local-completions"),
        *("--model_args", ",".join(f"{name}={value}" for name, value in model.items())),
        *("--tasks", "sums_written,sums_chosen", "--include_path", "tasks"),
        *("--output_path", "lm_eval", "--log_samples"),
    ]
    output_of(command, folder, OPENAI_API_KEY="none")
    [results] = (folder / "lm_eval").rglob("results_*.json")
    scored = json.loads(results.read_text(encoding="utf-8"))["results"]
    scores = {
        "lm_eval exact_match": scored["sums_written"]["exact_match,answer"],
        "lm_eval acc": scored["sums_chosen"]["acc,none"],
    }
    written: dict[str, str] = {}
    for sample in samples_of(folder, "sums_written"):
        written[sample["doc"]["prompt"]] = sample["resps"][0][0]
    chosen: dict[tuple[str, str], tuple[float, bool]] = {}
    for sample in samples_of(folder, "sums_chosen"):
        for choice, [[value, greedy]] in zip(
            sample["doc"]["choices"], sample["resps"], strict=True
        ):
            chosen[sample["doc"]["prompt"], choice] = (float(value), str(greedy) == "True")
    return written, chosen, scores


def samples_of(folder: Path, task: str) -> list[dict[str, Any]]:
    [file] = (folder / "lm_eval").rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def ask_inspect(python: Path, folder: Path, port: int) -> tuple[dict[str, str], float]:
    """The answers to chats by prompt, and the accuracy."""
    program = str(python.parent / "inspect")
    command = [
        *(program, "eval", "sums.py", "--model", f"openai-api/local/{BUNDLED}"),
        *("--temperature", "0", "--max-tokens", str(ANSWER_TOKENS), "--display", "plain"),
        *("--log-format", "json", "--log-dir", "inspect"),
    ]
    output_of(
        command,
        folder,
        LOCAL_BASE_URL=f"http://127.0.0.1:{port}/v1",
        LOCAL_API_KEY="none",
        HOME=str(folder),
    )
    [file] = (folder / "inspect").glob("*.json")
    log = json.loads(file.read_text(encoding="utf-8"))
    if log["status"] != "success":
        raise SystemExit(f"inspect eval ends with {log['status']}: {log.get('error')}")
    answers = {sample["input"]: sample["output"]["completion"] for sample in log["samples"]}
    [score] = log["results"]["scores"]
    return answers, float(score["metrics"]["accuracy"]["value"])


# ---- the engine's own answers


def compare(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    written: dict[str, str],
    chosen: dict[tuple[str, str], tuple[float, bool]],
    chats: dict[str, str],
) -> dict[str, Any]:
    """What the programs saw beside what the SDK gets from an engine of its own."""
    import tinker
    from transformers import AutoTokenizer

    model = BUNDLED_MODELS[BUNDLED]
    tokenizer: Any = AutoTokenizer.from_pretrained(model)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    equal_written = equal_chats = equal_greedy = 0
    differences: list[float] = []
    with running_engine(folder / "engine", model) as engine, engine.client() as service:
        sampler = service.create_sampling_client(base_model=BUNDLED).result()

        def sample(tokens: list[int], **more: Any) -> Any:
            params = tinker.SamplingParams(temperature=0, **more)
            return sampler.sample(tinker.ModelInput.from_ints(tokens), 1, params, **topk).result()

        def answer(tokens: list[int]) -> str:
            [sequence] = sample(tokens, max_tokens=ANSWER_TOKENS, stop=[END]).sequences
            return tokenizer.decode(sequence.tokens, skip_special_tokens=True)

        topk: dict[str, Any] = {}
        for row in rows:
            prompt = row["prompt"]
            equal_written += answer(encode(prompt)) == written.get(prompt)
            chat = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            equal_chats += answer(encode(chat)) == chats.get(prompt)
        topk = {"include_prompt_logprobs": True, "topk_prompt_logprobs": 1}
        for (prompt, choice), (value, greedy) in chosen.items():
            # lm_eval counts white space at a prompt's end with the continuation.
            tokens, start = encode(prompt + choice), len(encode(prompt.rstrip()))
            result = sample(tokens, max_tokens=1)
            logprobs = result.prompt_logprobs[start:]
            best = [top[0][0] for top in result.topk_prompt_logprobs[start:]]
            differences.append(abs(sum(logprobs) - value))
            equal_greedy += (best == tokens[start:]) == greedy
    return {
        "questions": len(rows),
        "lm_eval answers that are the engine's": equal_written,
        "inspect answers that are the engine's": equal_chats,
        "log-likelihoods": len(differences),
        "largest difference of a log-likelihood": max(differences),
        "greedy marks that are the engine's": equal_greedy,
    }


def is_equal(figures: dict[str, Any], questions: int) -> bool:
    asked = figures["log-likelihoods"]
    return (
        figures["lm_eval answers that are the engine's"] == questions
        and figures["inspect answers that are the engine's"] == questions
        and asked == 3 * questions
        and figures["greedy marks that are the engine's"] == asked
        and figures["largest difference of a log-likelihood"] <= LARGEST_DIFFERENCE
    )


if __name__ == "__main__":
    sys.exit(main())
