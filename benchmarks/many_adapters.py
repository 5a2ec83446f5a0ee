"""Sixteen sampling clients whose weights are 1, 4 or 16 different adapters of one base model.

Each client asks its own question, one at a time, through the unmodified SDK. `--other SRC` measures
the engine of another version's source folder in turn with this one, so that both see the same
machine; `--model FOLDER` takes another model than the bundled one, and `--dtype` the precision of
its weights. The aim: rows of different adapters share the products of the base model, so that
sixteen adapters are answered nearly as fast as one.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import tinker

from benchmarks.many_clients import CLIENTS, MODEL, PROMPT_TOKENS, ROOT, rates, running
from benchmarks.results_file import write_results
from tests.support.engine import no_proxy_for_loopback, random_datums

ADAPTERS = (1, 4, 16)
RANK = 16
ANSWER_TOKENS = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", type=Path, help="the src folder of another version")
    parser.add_argument("--model", type=Path, help="the folder of another model")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    options = parser.parse_args()
    no_proxy_for_loopback()
    versions = {"this version": ROOT / "src"}
    if options.other is not None:
        versions = {"before": options.other.resolve(), **versions}
    with ExitStack() as stack:
        services = {
            name: stack.enter_context(running(source, options.model, options.dtype))
            for name, source in versions.items()
        }
        samplers = {name: new_samplers(service) for name, service in services.items()}
        speeds: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.rounds):
            for count in ADAPTERS:
                for name, clients in samplers.items():
                    works = [
                        lambda sampler=clients[number % count], number=number: ask(sampler, number)
                        for number in range(CLIENTS)
                    ]
                    [speed] = rates([works], options.seconds)
                    speeds.setdefault((name, count), []).append(speed)
                    print(f"{name}, {count} adapters: {speed:.1f} answers a second", flush=True)
    figures: dict[str, object] = {}
    for (name, count), measured in speeds.items():
        figures[f"{name}: answers a second, {count} adapters"] = round(median(measured), 2)
    for name in versions:
        gain = [many / one for many, one in zip(speeds[name, 16], speeds[name, 1], strict=True)]
        figures[f"{name}: sixteen adapters / one"] = round(median(gain), 3)
    figures |= {
        "model": MODEL if options.model is None else options.model.name,
        "precision": options.dtype,
        "rank": RANK,
        "seconds of each measurement": options.seconds,
        "rounds": options.rounds,
    }
    print(json.dumps(figures, indent=2))
    command = f"python -m benchmarks.many_adapters --seconds {options.seconds:g}"
    if options.rounds != 3:
        command += f" --rounds {options.rounds}"
    if options.other is not None:
        command += " --other SRC"
    if options.model is not None:
        command += " --model FOLDER"
    written = ["many_adapters"]
    if options.model is not None:
        written.append(options.model.name)
    if options.dtype != "auto":
        command += f" --dtype {options.dtype}"
        written.append(options.dtype)
    print("written:", write_results("_".join(written), command, figures))


def new_samplers(service: tinker.ServiceClient) -> list[tinker.SamplingClient]:
    """A client of each of sixteen adapters, which are trained for one step."""
    samplers: list[tinker.SamplingClient] = []
    for seed in range(max(ADAPTERS)):
        client: Any = service.create_lora_training_client(MODEL, rank=RANK, seed=seed).result()
        client.forward_backward(random_datums(2, seed=seed), "cross_entropy").result()
        client.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
        samplers.append(client.save_weights_and_get_sampling_client().result())
    return samplers


def ask(sampler: tinker.SamplingClient, number: int) -> None:
    """An answer to a prompt of this client's own: no other client's is read for it."""
    tokens = [10 + number, *range(30, 29 + PROMPT_TOKENS)]
    params = tinker.SamplingParams(max_tokens=ANSWER_TOKENS, temperature=1.0, stop=[])
    sampler.sample(tinker.ModelInput.from_ints(tokens), 1, params).result()


if __name__ == "__main__":
    main()
