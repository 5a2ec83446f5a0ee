"""Healthy and diverging loss curves by seed -> the watch of a run: false stops, and delays.

The curves are synthetic: a level that falls, with the noise of small batches (normal, heavy-tailed,
of two kinds of samples), epochs, spikes that pass, streams that change from easy to hard; and such
curves that rise at a step and stay. A false stop, an unsound state that is called sound, or more
than a few rises that are not seen break the promise.
"""

import argparse
import math
import sys
from collections import defaultdict

import numpy as np

from benchmarks.results_file import write_results
from tinkersmith.training.divergence import SMOOTHED_STEPS, LossWatch

Random = np.random.Generator
_MISSED = 0.03  # of the diverging curves: early or within much noise: the end of the run says those
VOCABULARIES = (512, 2048, 32_000, 151_936, 262_144)


def falling(random: Random, steps: int, beginning: float) -> np.ndarray:
    """The level of a run that learns: it falls fast, then slowly; with an epoch's small steps."""
    last = beginning * random.uniform(0.02, 0.95)
    pace = random.uniform(5, 0.5 * steps)
    level = last + (beginning - last) * np.exp(-np.arange(steps) / pace)
    epochs = random.integers(1, 6)
    return level * random.uniform(0.6, 1.0) ** (np.arange(steps) * epochs // steps)


def noisy(random: Random, level: np.ndarray, kind: str) -> np.ndarray:
    """Losses of batches around a level; none is below 0."""
    count = len(level)
    if kind == "normal":
        return np.abs(level * (1 + random.uniform(0.02, 0.4) * random.standard_normal(count)))
    if kind == "log-normal":  # batch 1 of very different samples
        spread = random.uniform(0.2, 1.2)
        return level * np.exp(spread * random.standard_normal(count) - spread**2 / 2)
    if kind == "two kinds":  # easy samples, and a share of hard ones
        hard = random.random(count) < random.uniform(0.02, 0.5)
        return np.where(hard, level * random.uniform(2, 8), level * 0.3) * random.uniform(
            0.8, 1.2, count
        )
    tails = np.abs(random.standard_t(3, count))
    return level * (0.4 + 0.6 * tails)


def spikes(random: Random, losses: np.ndarray, vocabulary: int) -> np.ndarray:
    """Some jumps that pass within a few steps, as one bad batch makes them."""
    spiked = losses.copy()
    for start in random.integers(1, len(losses), random.integers(1, 6)):
        length = random.integers(1, 25)
        height = random.uniform(0.2, 1.1) * math.log(vocabulary)
        after = np.arange(len(losses) - start)
        spiked[start:] += height * np.exp(-after / (length / 3))
    return spiked


def healthy(random: Random, vocabulary: int) -> tuple[str, np.ndarray, bool]:
    """A curve that must not be stopped: its kind, its losses, and whether it is no stream."""
    steps = int(np.exp(random.uniform(np.log(20), np.log(3000))))
    highest = 0.6 * math.log(vocabulary)
    beginning = random.uniform(0.3, highest)
    kind = str(random.choice(["normal", "log-normal", "two kinds", "heavy tails"]))
    form = str(random.choice(["falling", "flat", "spiked", "stream", "random start"]))
    if form == "flat":
        level = np.full(steps, beginning)
    elif form == "random start":  # weights that nobody trained are soon better than chance
        least, most = math.log(vocabulary) * np.array([random.uniform(0.1, 0.8), 1.6])
        level = least + (most - least) * np.exp(-np.arange(steps) / random.uniform(2, 40))
    elif form == "stream":  # each part of the run has files of its own
        hardness = random.uniform(0.1, 1.0, random.integers(2, 10))
        parts = np.arange(steps) * len(hardness) // steps
        level = falling(random, steps, 0.35 * math.log(vocabulary)) * hardness[parts]
    else:
        level = falling(random, steps, beginning)
    losses = noisy(random, level, kind)
    # A sound model is hardly worse than chance on any sample, but for new weights at first.
    chance = math.log(vocabulary)
    most = np.maximum(1.2 * level, chance) if form == "random start" else np.full(steps, chance)
    losses = np.minimum(losses, most * random.uniform(0.9, 1.1, steps))
    if form == "spiked":
        losses = spikes(random, losses, vocabulary)
    return f"{form}, {kind}", losses, form != "stream"


def diverging(random: Random, vocabulary: int) -> tuple[str, np.ndarray, int]:
    """A curve that must be stopped: its kind, its losses, and the first step of the rise."""
    steps = int(random.integers(300, 1500))
    beginning = random.uniform(0.3, 0.35 * math.log(vocabulary))
    onset = int(random.integers(2, steps - 250))
    level = falling(random, steps, beginning)
    form = str(random.choice(["collapse", "explosion", "slow"]))
    after = np.arange(steps - onset)
    if form == "collapse":  # to the frequencies of single tokens
        level[onset:] = random.uniform(0.6, 0.9) * math.log(vocabulary)
    elif form == "explosion":
        height = np.exp(random.uniform(np.log(3), np.log(1000))) * math.log(vocabulary)
        level[onset:] = height
    else:
        rise = np.minimum(after / random.uniform(20, 100), 1)
        goal = random.uniform(0.7, 1.2) * math.log(vocabulary)
        level[onset:] += rise * np.maximum(goal - level[onset:], 0)
    kind = str(random.choice(["normal", "log-normal", "two kinds"]))
    losses = np.minimum(noisy(random, level, kind), math.log(vocabulary))
    # A model that has lost everything is about as wrong on every sample.
    losses[onset:] = noisy(random, level[onset:], "normal")
    return f"{form}, {kind}", losses, onset


def stopped_at(watch: LossWatch, losses: np.ndarray) -> int | None:
    """The step at which the watch sees a divergence, counted from 1."""
    for step, loss in enumerate(losses.tolist(), start=1):
        watch.add(step, loss)
        if watch.diverged:
            return step
    return None


def try_healthy(count: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """How many curves of each kind were tried, and those that were stopped."""
    tried: dict[str, int] = defaultdict(int)
    stopped: list[str] = []
    for number in range(count):
        random = np.random.default_rng([seed, number])
        vocabulary = int(random.choice(VOCABULARIES))
        kind, losses, shuffled = healthy(random, vocabulary)
        warmup = int(len(losses) * random.choice([0, 0.03, 0.2]))
        tried[kind] += 1
        step = stopped_at(LossWatch(vocabulary, warmup, shuffled), losses)
        if step is not None:
            stopped.append(f"{kind}: curve {number} of seed {seed} stopped at step {step}")
    return dict(sorted(tried.items())), stopped


def try_diverging(count: int, seed: int) -> tuple[dict[str, list[int]], list[str], list[str]]:
    """The delays in steps of each kind; the curves that were missed; those told wrongly."""
    delays: dict[str, list[int]] = defaultdict(list)
    missed: list[str] = []
    wrong: list[str] = []
    for number in range(count):
        random = np.random.default_rng([seed, number])
        vocabulary = int(random.choice(VOCABULARIES))
        kind, losses, onset = diverging(random, vocabulary)
        watch = LossWatch(vocabulary)
        step = stopped_at(watch, losses)
        where = f"{kind}: curve {number} of seed {seed}, which rises after step {onset}"
        if step is None:
            missed.append(f"{where}, is not stopped")
        elif step <= onset:
            wrong.append(f"{where}, is stopped at step {step}")
        else:
            delays[kind].append(step - onset)
            # Noise hides the first steps of a rise: more of a slow one, or of one that is early.
            hidden = 50 if kind.startswith("slow") else 10 if onset < SMOOTHED_STEPS else 2
            if watch.last_sound_step() > onset + hidden:
                wrong.append(f"{where}: step {watch.last_sound_step()} is called sound")
    return dict(sorted(delays.items())), missed, wrong


def report(healthy_count: int, diverging_count: int, seed: int) -> int:
    """Try curves, print a table and write the results; 1 if a promise is broken."""
    tried, stopped = try_healthy(healthy_count, seed)
    delays, missed, wrong = try_diverging(diverging_count, seed)
    figures: dict[str, object] = {
        "healthy curves": healthy_count,
        "of each kind": tried,
        "false stops": len(stopped),
        "diverging curves": diverging_count,
        "not seen before the curve ends": len(missed),
        "told wrongly": len(wrong),
        "delay in steps, median and largest": {
            kind: [int(np.median(steps)), max(steps)] for kind, steps in delays.items()
        },
    }
    for line in [*stopped, *wrong, *missed][:50]:
        print(line)
    for name, figure in figures.items():
        print(f"{name:36} {figure}")
    command = "python -m benchmarks.reliability.divergence"
    print("written:", write_results("reliability_divergence", command, figures))
    return 1 if stopped or wrong or len(missed) > _MISSED * diverging_count else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--size", type=int, default=5000, help="healthy curves; a quarter as many diverge"
    )
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    return report(arguments.size, arguments.size // 4, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
