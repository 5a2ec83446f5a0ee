"""Evaluations that are killed at random moments, and go on: are they equal to one that never was?

An engine of its own process answers. A proxy before it sees every question that reaches it. Each
trial evaluates a trained model and its base model, sends SIGKILL, SIGTERM or SIGINT at a random
moment, goes on with --resume, and may be stopped again. Then the results are compared, and the
questions that were asked are compared with the answers that were on disk at each stop: none of
them may be asked again.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.results_file import write_results
from tests.support.engine import KEY, running_engine
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.tiny_models import make_tiny_model
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.evaluation.answers_file import stored_answers, unfinished_file
from tinkersmith.evaluation.questions import digest_of_tokens
from tinkersmith.evaluation.result_files import answers_file_of, table_file_of

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = next(iter(BUNDLED_MODELS))
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SECOND_STOPS = 0.4  # share of the trials
PATIENCE = 300.0  # seconds for an evaluation on a busy machine
_QUESTIONS = 160
_COPIES = 20  # samples that ask what an earlier one asks
_TIMES = ("created", "seconds")
_LOOK_EVERY = 0.005  # seconds


@dataclass
class Trial:
    """One evaluation that was stopped."""

    number: int
    stops: list[str] = field(default_factory=list[str])  # signal and answers on disk
    asked: int = 0  # questions that reached the engine
    answered_before: int = 0  # answers that were on disk when it was stopped
    asked_again: int = 0  # of these
    broken: list[str] = field(default_factory=list[str])  # promises
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.evaluation_kills")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.trials < 1:
        parser.error("--trials must be at least 1.")
    print(f"{options.trials} trials, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tinkersmith-evaluation-kills-") as folder:
        trials = stop_and_go_on(Path(folder), options.trials, options.seed)
    figures = figures_of(trials) | {"seed": options.seed}
    for name, value in figures.items():
        print(f"{name:44} {value}")
    command = f"python -m benchmarks.reliability.evaluation_kills --trials {options.trials}"
    print("written:", write_results("reliability_evaluation_kills", command, figures))
    return int(any(trial.broken for trial in trials))


def stop_and_go_on(
    folder: Path,
    count: int,
    seed: int,
    questions: int = _QUESTIONS,
    second_stops: float = SECOND_STOPS,
) -> list[Trial]:
    """Run so many trials, and compare each with an undisturbed evaluation."""
    write_test_set(folder / "test.json", questions)
    # The bundled model is always there; the engine wants one that it is told.
    base = make_tiny_model(folder / "other")
    with running_engine(folder / "engine", base) as engine, counted(engine.url) as counter:
        project = Project(folder, counter.proxy.url)
        project.train()
        begun = time.monotonic()
        project.evaluate("undisturbed")
        pace = time.monotonic() - begun
        expected = project.results("undisturbed")
        counter.taken()
        trials: list[Trial] = []
        for number in range(1, count + 1):
            rng = random.Random(f"{seed}/{number}")
            trial = Trial(number)
            begun = time.monotonic()
            try:
                _run(trial, project, counter, rng, pace, second_stops)
                if project.results(str(number)) != expected:
                    trial.broken.append("results: they differ")
            except Exception as error:  # the other trials go on
                trial.broken.append(f"{type(error).__name__}: {error}")
            trial.seconds = time.monotonic() - begun
            trials.append(trial)
            print(
                f"{number:4} {', '.join(trial.stops) or 'not stopped':48} asked {trial.asked:4}, "
                f"again {trial.asked_again}  {trial.seconds:5.1f} s  "
                f"{'; '.join(trial.broken) or 'equal'}",
                flush=True,
            )
    return trials


def figures_of(trials: Sequence[Trial]) -> dict[str, Any]:
    """The counts of all trials."""
    broken = Counter(promise.split(":")[0] for trial in trials for promise in trial.broken)
    signals = Counter(stop.split()[0] for trial in trials for stop in trial.stops)
    return {
        "trials": len(trials),
        "stops": sum(len(trial.stops) for trial in trials),
        "by signal": dict(signals),
        "evaluations that ended before the stop": sum(not trial.stops for trial in trials),
        "answers on disk at the stops": sum(trial.answered_before for trial in trials),
        "of these, asked again": sum(trial.asked_again for trial in trials),
        "questions asked in all": sum(trial.asked for trial in trials),
        "equal to the undisturbed one": sum(not trial.broken for trial in trials),
        "promises broken": dict(broken),
        "seconds per trial": round(sum(trial.seconds for trial in trials) / len(trials), 1),
    }


def write_test_set(file: Path, questions: int) -> None:
    """Sums, some of which are asked twice."""
    pairs = [(n + 3, 2 * n + 1) for n in range(questions)]
    pairs += pairs[: min(_COPIES, questions // 4)]
    file.write_text(
        json.dumps(
            [
                {
                    "instruction": "Add the numbers.",
                    "input": f"{a} + {b}",
                    "output": f"Answer: {a + b}",
                }
                for a, b in pairs
            ]
        )
    )


# ---- the questions that reach the engine


@dataclass
class PromptCounter:
    """Which prompts reached the engine, by the digest of their tokens."""

    proxy: FaultProxy
    prompts: list[str] = field(default_factory=list[str])

    def taken(self) -> list[str]:
        """The prompts since the last call."""
        taken, self.prompts = self.prompts, []
        return taken


@contextmanager
def counted(url: str) -> Generator[PromptCounter, None, None]:
    with fault_proxy(url, "reset", 0.0) as proxy:
        counter = PromptCounter(proxy)

        def listen(route: str, head: bytes, body: bytes) -> None:
            if route == "POST asample":
                request = json.loads(_joined(head, body))
                tokens = [
                    token for chunk in request["prompt"]["chunks"] for token in chunk["tokens"]
                ]
                counter.prompts.append(digest_of_tokens(tokens))

        proxy.listen = listen
        yield counter


def _joined(head: bytes, body: bytes) -> bytes:
    """A body without the framing of chunks."""
    if b"chunked" not in head.lower():
        return body
    joined, rest = b"", body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        joined, rest = joined + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return joined


# ---- processes


@dataclass(frozen=True)
class Project:
    """A folder with a trained model, and a server that has it."""

    folder: Path
    url: str

    def train(self) -> None:
        (self.folder / "train.json").write_text(
            json.dumps(
                [
                    {
                        "instruction": "Add the numbers.",
                        "input": f"{n} + 1",
                        "output": f"Answer: {n + 1}",
                    }
                    for n in range(1, 17)
                ]
            )
        )
        settings = ("DATA_FILES=train.json", "NUM_EPOCHS=1", "BATCH_SIZE=8", "LORA_RANK=4")
        code = self.start("train", "train", *_set(*settings, "EXPORT_AFTER_TRAINING=no")).wait(
            PATIENCE
        )
        if code:
            raise RuntimeError(self.output("train"))

    def start(self, name: str, *words: str) -> "subprocess.Popen[bytes]":
        common = ("BACKEND=tinker", f"BASE_MODEL={MODEL}", "OUTPUT_DIR=runs", "SEED=5")
        with (self.folder / f"{name}.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tinkersmith", *words, *_set(*common)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={
                    **os.environ,
                    "TINKER_BASE_URL": self.url,
                    "TINKER_API_KEY": KEY,
                    "TINKER_TELEMETRY": "0",
                    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
                },
            )

    def start_evaluation(self, name: str) -> "subprocess.Popen[bytes]":
        """Begin an evaluation, or go on with it if it was stopped."""
        # Two answers to each question, at a temperature: each has a seed of its own.
        sampling = ("SAMPLING_MAX_TOKENS=24", "SAMPLING_TEMPERATURE=0.8", "SAMPLING_NUM_SAMPLES=2")
        output = self.folder / f"{name}.json"
        going_on = ["--resume"] if unfinished_file(output).exists() else []
        files = ["--test-data", "test.json", "--output", output.name]
        words = ["evaluate", "--compare-base", *files, *going_on]
        return self.start(name, *words, *_set(*sampling))

    def evaluate(self, name: str) -> None:
        if self.start_evaluation(name).wait(PATIENCE):
            raise RuntimeError(self.output(name))

    def output(self, name: str) -> str:
        return (self.folder / f"{name}.txt").read_text(errors="replace")[-1500:]

    def results(self, name: str) -> tuple[Any, list[str], str]:
        """The content of the three files, without times."""
        file = self.folder / f"{name}.json"
        if unfinished_file(file).exists():
            raise RuntimeError(f"{unfinished_file(file)} is left")
        return (
            without_times(json.loads(file.read_text(encoding="utf-8"))),
            answers_file_of(file).read_text(encoding="utf-8").splitlines(),
            table_file_of(file).read_text(encoding="utf-8"),
        )


def without_times(value: Any) -> Any:
    """A JSON value without the fields that say when, or how long."""
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if name not in _TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def _set(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def _run(
    trial: Trial,
    project: Project,
    counter: PromptCounter,
    rng: random.Random,
    pace: float,
    second_stops: float,
) -> None:
    name = str(trial.number)
    output = project.folder / f"{name}.json"
    stops = 2 if rng.random() < second_stops else 1
    answered: Counter[str] = Counter()  # questions, by how many models have answered them
    for _ in range(stops):
        process = project.start_evaluation(name)
        _stop(trial, process, output, rng, pace)
        _check_asked(trial, counter.taken(), answered)
        if output.exists() and not unfinished_file(output).exists():
            return
        answered = _answered(output)
        trial.answered_before += sum(answered.values())
    project.evaluate(name)
    _check_asked(trial, counter.taken(), answered)
    if "Traceback" in project.output(name):
        trial.broken.append(f"traceback: {project.output(name)}")


def _stop(
    trial: Trial,
    process: "subprocess.Popen[bytes]",
    output: Path,
    rng: random.Random,
    pace: float,
) -> None:
    """Stop an evaluation at a random moment, unless it has ended.

    In one trial of four the moment is any; otherwise it is while answers come.
    """
    number = rng.choice(SIGNALS)
    anywhere = rng.random() < 0.25
    moment = rng.uniform(0, pace)
    wanted = rng.uniform(0.0, 1.0)
    if anywhere:
        time.sleep(moment)
    else:
        before = _count(output)
        goal = before + 1 + wanted * max(0, 4 * _samples(output) - before - 1)
        while process.poll() is None and _count(output) < goal:
            time.sleep(_LOOK_EVERY)
    if process.poll() is not None:
        return
    process.send_signal(number)
    process.wait(PATIENCE)
    trial.stops.append(f"{signal.Signals(number).name} at {_count(output)}")


def _count(output: Path) -> int:
    """Lines of the file of answers."""
    try:
        return unfinished_file(output).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _samples(output: Path) -> int:
    return len(
        {json.dumps(sample) for sample in json.loads((output.parent / "test.json").read_text())}
    )


def _answered(output: Path) -> "Counter[str]":
    """Of each question, how many models have all their answers on disk."""
    stored = stored_answers(unfinished_file(output))
    if stored is None:
        return Counter()
    return Counter(
        question
        for asked in stored.answers.values()
        for question, answers in asked.items()
        if len(answers) == 2
    )


def _check_asked(trial: Trial, prompts: Sequence[str], answered: "Counter[str]") -> None:
    """Compare what one process asked with what was answered when it began."""
    trial.asked += len(prompts)
    for question, times in Counter(prompts).items():
        more = times - (2 - answered[question])  # two models are asked
        if more > 0:
            trial.asked_again += more
            trial.broken.append(f"asked again: {question}")


if __name__ == "__main__":
    sys.exit(main())
