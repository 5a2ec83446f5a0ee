"""A processor with AVX2 alone: bases in bfloat16 and float32, against plain transformers + peft.

The processor is simulated: torch's libraries are told to use AVX2 only, and the engine that there
are no instructions for bfloat16. (The engine's own code still has all of this processor's.)
Contestants take turns, each run in a process of its own. Training is a step of two samples, a
step's shortest and longest: forward and backward, and one AdamW step. Sampling is greedy, prompts
of 100 tokens that come together, 48 tokens each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.process_memory import resident_gb
from benchmarks.results_file import write_results
from benchmarks.training_data import (
    SHAPE,
    Lengths,
    add_arguments,
    random_model,
    random_samples,
    step_lengths,
)

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
AVX2 |= {"MKL_ENABLE_INSTRUCTIONS": "AVX2"}
VOCABULARY = 32000
PROMPT, ANSWER = 100, 48  # tokens
PROMPTS = [1, 8, 32]
OURS, PLAIN = "tinkersmith", "plain"
# Who, and the precision of the frozen weights. Plain sampling in bfloat16 would take hours.
TRAINING = [(OURS, "bfloat16"), (PLAIN, "bfloat16"), (OURS, "float32"), (PLAIN, "float32")]
SAMPLING = [(OURS, "bfloat16"), (OURS, "float32"), (PLAIN, "float32")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        print(json.dumps(_measured(threads=options.threads, **json.loads(options.job))))
        return

    [lengths], source = step_lengths(options.data, 1, 16384)
    by_length = sorted(lengths, key=sum)
    pair = [by_length[0], by_length[-1]]
    training: dict[str, list[dict[str, float]]] = {}
    sampling: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(random_model(Path(temporary) / "model", VOCABULARY))
        environment = os.environ | AVX2 | {"XDG_CACHE_HOME": f"{temporary}/cache"}
        for number in range(options.rounds):
            for runs, lengths, contestants in (
                (training, pair, TRAINING),
                (sampling, None, SAMPLING),
            ):
                for who, dtype in contestants:
                    job = {"who": who, "dtype": dtype, "folder": folder, "lengths": lengths}
                    command = [sys.executable, "-m", "benchmarks.without_bf16"]
                    command += ["--threads", str(options.threads), "--job", json.dumps(job)]
                    done = subprocess.run(
                        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
                    )
                    run = json.loads(done.stdout.splitlines()[-1])
                    runs.setdefault(f"{who}, {dtype}", []).append(run)
                    print(f"{number + 1} {who}, {dtype}:", run, flush=True)
    figures = {
        "lengths": source,
        "tokens of a training step": sum(map(sum, pair)),
        "vocabulary": VOCABULARY,
        "shape": SHAPE,
        "threads": options.threads,
        "rounds": options.rounds,
        "training": _medians(training),
        "sampling": _medians(sampling),
        "runs": {"training": training, "sampling": sampling},
    }
    command = "python -m benchmarks.without_bf16"
    print("written:", write_results("without_bf16", command, figures))


def _medians(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {what: round(median(run[what] for run in found), 2) for what in found[0]}
        for name, found in runs.items()
    }


def _measured(
    who: str, dtype: str, folder: str, lengths: Lengths | None, threads: int
) -> dict[str, float]:
    from tinkersmith.engine.hardware.memory import keep_freed_memory
    from tinkersmith.engine.model import base_model

    if who == OURS:
        keep_freed_memory()  # as the engine does at its start, before torch has threads
    import torch

    torch.set_num_threads(threads)
    base_model.multiplies_bf16 = lambda: False  # pyright: ignore[reportPrivateImportUsage]
    if lengths is None:
        return _sampled(who, dtype, Path(folder))
    return _trained(who, dtype, Path(folder), lengths)


def _trained(who: str, dtype: str, folder: Path, lengths: Lengths) -> dict[str, float]:
    """A step after one of the shortest sample, and the memory at the most."""
    from benchmarks.training_worker import our_step, plain_step, timed

    samples = random_samples(lengths, VOCABULARY)
    step = our_step(folder, dtype=dtype)[0] if who == OURS else plain_step(folder, 1, dtype)
    step(samples[:1])
    seconds, loss = timed(step, samples)
    return {"seconds": seconds, "loss": loss, "peak_memory_gb": resident_gb("VmHWM")}


def _sampled(who: str, dtype: str, folder: Path) -> dict[str, float]:
    """Tokens a second, by how many prompts there are; all go together."""
    from benchmarks.sampling_worker import generate_answers, our_answers, random_prompts
    from benchmarks.training_worker import timed

    if who == OURS:
        answers = our_answers(folder, dtype)
    else:
        answers = generate_answers(folder, max(PROMPTS), dtype)
    speeds = {}
    for count in PROMPTS:
        prompts = random_prompts([[PROMPT, ANSWER]] * count, folder)
        answers(prompts[:1])
        seconds, _ = timed(answers, prompts)
        speeds[f"{count} prompts, tokens a second"] = count * ANSWER / seconds
    return speeds


if __name__ == "__main__":
    main()
