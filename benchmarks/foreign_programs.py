"""Programs that others wrote, unchanged, against an engine with the bundled model and no network.

Writes benchmarks/results/foreign_programs.json, of which tools/compatibility.py makes a table. The
programs are not among the project's dependencies: install those that you want to run, in an
environment of its own. One that is missing is left out. Exits with 1 if a program fails.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.cookbook_data import make_data, make_model
from benchmarks.results_file import write_results

MODEL = "tinkersmith/tiny-math"
COOKBOOK_MODEL = "Qwen/Qwen3.5-9B-Base"  # a name that tinker-cookbook knows
QUESTION = "Tom has 3 apples and buys 4. How many has he?"
_OPENAI = "BASE/oai/api/v1"

OPENAI_PROGRAM = f"""
from openai import OpenAI
client = OpenAI(base_url="{_OPENAI}")
asked = [{{"role": "user", "content": "{QUESTION}"}}]
stream = client.chat.completions.create(model="{MODEL}", messages=asked, stream=True)
print("answer:", "".join(part.choices[0].delta.content or "" for part in stream))
"""
ANTHROPIC_PROGRAM = f"""
from anthropic import Anthropic
client = Anthropic(base_url="BASE/anthropic/api")
asked = [{{"role": "user", "content": "{QUESTION}"}}]
message = client.messages.create(model="{MODEL}", messages=asked, max_tokens=50)
print("answer:", message.content[0].text)
"""
LITELLM_PROGRAM = f"""
import litellm
asked = [{{"role": "user", "content": "{QUESTION}"}}]
answer = litellm.completion(
    model="openai/{MODEL}", api_base="{_OPENAI}", messages=asked, max_tokens=50
)
print("answer:", answer.choices[0].message.content)
"""
INSPECT_TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes

@task
def sums():
    samples = [Sample(f"What is {n} + 1?", target=str(n + 1)) for n in range(5)]
    return Task(samples, scorer=includes())
"""


# It shows and samples the runs of tinker-cookbook: here one of sl_loop, trained before.
SCOPE_PROGRAM = """
tinkerscope serve --port 8797 runs & server=$!
trap "kill $server" EXIT
export TINKERSCOPE_BASE_URL=http://127.0.0.1:8797
for second in $(seq 60); do sleep 1; tinkerscope ls && break; done
tinkerscope checkpoints sl_loop
tinkerscope chat sl_loop "What is 3 + 4?" --max-tokens 10
"""


def _train_with_the_cookbook(folder: Path, url: str) -> None:
    make_data(folder, folder.parent / "model")
    command = [sys.executable, "-m", "tinker_cookbook.recipes.sl_loop", "batch_size=64"]
    settings = ["max_length=512", f"model_name={COOKBOOK_MODEL}", "log_path=runs/sl_loop"]
    subprocess.run([*command, *settings], cwd=folder, check=True, capture_output=True)


def _write_llm_models(folder: Path, url: str) -> None:
    (folder / "extra-openai-models.yaml").write_text(
        f"- model_id: tiny\n  model_name: {MODEL}\n  api_base: {url}/oai/api/v1\n"
        "  api_key_name: engine\n"
    )


def _write_inspect_task(folder: Path, url: str) -> None:
    (folder / "sums.py").write_text(INSPECT_TASK)


def _nothing(folder: Path, url: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Program:
    """A program: its package, the command as a user types it, and what its output must hold."""

    package: str
    command: list[str]
    shown: str  # the command in the table
    output: str  # a regular expression
    prepare: Callable[[Path, str], None] = _nothing  # in its folder, with the engine's address


PROGRAMS = (
    Program(
        "openai",
        [sys.executable, "-c", OPENAI_PROGRAM],
        "OpenAI(base_url='BASE/oai/api/v1').chat.completions.create(...)",
        r"answer: ",
    ),
    Program(
        "anthropic",
        [sys.executable, "-c", ANTHROPIC_PROGRAM],
        "Anthropic(base_url='BASE/anthropic/api').messages.create(...)",
        r"answer: ",
    ),
    Program(
        "litellm",
        [sys.executable, "-c", LITELLM_PROGRAM],
        "litellm.completion('openai/MODEL', api_base='BASE/oai/api/v1', ...)",
        r"answer: ",
    ),
    Program(
        "llm",
        ["llm", "-m", "tiny", "--no-stream", "-o", "max_tokens", "50", QUESTION],
        "llm -m tiny QUESTION",
        r"\S",
        _write_llm_models,
    ),
    Program(
        "tinkerscope",
        ["bash", "-c", SCOPE_PROGRAM],
        "tinkerscope serve runs; tinkerscope chat sl_loop QUESTION",
        r"(?s)final +4 +yes.*sample 0.*\[done\]",
        _train_with_the_cookbook,
    ),
    Program(
        "inspect_ai",
        [
            *("inspect", "eval", "sums.py", "--model", f"openai-api/engine/{MODEL}"),
            *("--max-tokens", "20", "--display", "plain"),
        ],
        "inspect eval sums.py --model openai-api/engine/MODEL",
        r"accuracy",
        _write_inspect_task,
    ),
)


def run(program: Program, folder: Path, url: str, key: str) -> tuple[str, str]:
    """The result of a program, and the end of its output."""
    folder.mkdir()
    command = [word.replace("BASE", url) for word in program.command]
    os.environ |= {  # also for `prepare`
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "TINKER_API_KEY": key,
        "TINKER_BASE_URL": url,
        "HOME": str(folder),
    }
    program.prepare(folder, url)
    environment = {
        **os.environ,
        **dict.fromkeys(("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ENGINE_API_KEY"), key),
        "ENGINE_BASE_URL": f"{url}/oai/api/v1",
        "LLM_USER_PATH": str(folder),
        "LLM_LOAD_PLUGINS": "",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    if program.package == "llm":
        (folder / "keys.json").write_text(f'{{"engine": "{key}"}}')
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    output = done.stdout + done.stderr
    good = done.returncode == 0 and re.search(program.output, done.stdout) is not None
    return ("runs" if good else "fails"), output[-2000:]


def main() -> int:
    from tests.support.engine import KEY, no_proxy_for_loopback, running_engine

    argparse.ArgumentParser(description=__doc__).parse_args()
    no_proxy_for_loopback()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        base = make_model(Path(temporary, "model"))
        names = (MODEL, COOKBOOK_MODEL)
        options = [part for name in names for part in ("--base-model", f"{name}={base}")]
        with running_engine(Path(temporary, "engine"), base, *options) as engine:
            for program in PROGRAMS:
                try:
                    found = version(program.package)
                except PackageNotFoundError:
                    print(program.package, "is not installed: left out")
                    continue
                result, output = run(program, Path(temporary, program.package), engine.url, KEY)
                print(program.package, found, result)
                if result != "runs":
                    print(output)
                rows.append(
                    {
                        "program": program.package,
                        "version": found,
                        "command": program.shown,
                        "result": result,
                    }
                )
    write_results("foreign_programs", "python -m benchmarks.foreign_programs", {"programs": rows})
    return int(any(row["result"] != "runs" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
