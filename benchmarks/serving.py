"""`tinkersmith serve` against transformers' `generate`: tokens a second, and the first token.

Both get the same prompts and take the most likely tokens to the same end. `generate` gets them in
batches of the size that suits it best of those tried; the server gets them from clients that each
wait for their answer. `--clients 64 --minutes 2` asks without a pause, and counts errors.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.results_file import write_results
from tests.support.engine import no_proxy_for_loopback
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.progress import Progress
from tinkersmith.serving.models import models_to_serve
from tinkersmith.serving.server import running_server
from tinkersmith.settings.reading import settings_from

BUNDLED = "tinkersmith/tiny-math"
ROOT = Path(__file__).resolve().parent.parent
PROMPTS = 64
ANSWER_TOKENS = 64
BATCHES = (8, 16, 32, 64)  # of `generate`
CLIENTS = 16
PATIENCE = 600.0  # seconds for an answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64, help="of the load without a pause")
    parser.add_argument("--minutes", type=float, default=2.0, help="of that load; 0 leaves it out")
    options = parser.parse_args()
    os.environ.pop("TINKER_BASE_URL", None)
    os.environ.pop("TINKER_API_KEY", None)
    no_proxy_for_loopback()
    prompts = read_prompts(PROMPTS)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        wide = make_wide_model(Path(folder) / "qwen3-512")
        for name, model in (("bundled", BUNDLED), ("random Qwen3 of hidden 512", str(wide))):
            source = BUNDLED_MODELS[BUNDLED] if model == BUNDLED else wide
            plain = best_of_generate(source, prompts, options.rounds)
            minutes = options.minutes if model == BUNDLED else 0.0
            served = asyncio.run(
                measure(Path(folder), model, prompts, options.rounds, options.clients, minutes)
            )
            ratio = round(served["tokens/s, 16 clients"] / plain["tokens/s"], 2)
            figures[name] = {"generate": plain, "served": served, "ratio": ratio}
            print(json.dumps({name: figures[name]}, indent=2), flush=True)
    figures["prompts"], figures["tokens of an answer, at most"] = PROMPTS, ANSWER_TOKENS
    command = (
        f"python -m benchmarks.serving --clients {options.clients} --minutes {options.minutes:g}"
    )
    print("written:", write_results("serving", command, figures))


def read_prompts(count: int) -> list[str]:
    problems = json.loads((ROOT / "data" / "word_problems.json").read_text(encoding="utf-8"))
    return [
        f"Instruction: {one['instruction']}\nInput: {one['input']}\nResponse:\n"
        for one in problems[:count]
    ]


def make_wide_model(folder: Path) -> Path:
    """A random Qwen3 of hidden 512 with the bundled model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    bundled = BUNDLED_MODELS[BUNDLED]
    torch.manual_seed(0)
    vocabulary = AutoConfig.from_pretrained(bundled).vocab_size
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled).save_pretrained(folder)
    return folder


def best_of_generate(folder: Path, prompts: Sequence[str], rounds: int) -> dict[str, Any]:
    """The highest tokens a second of transformers' `generate` in fp32 over the sizes of batches."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rates: dict[int, float] = {}
    for size in BATCHES:
        measured: list[float] = []
        for _ in range(rounds):
            begun, tokens = time.perf_counter(), 0
            for start in range(0, len(prompts), size):
                batch = tokenizer(
                    list(prompts[start : start + size]), return_tensors="pt", padding=True
                )
                with torch.inference_mode():
                    answers = model.generate(
                        **batch,
                        max_new_tokens=ANSWER_TOKENS,
                        do_sample=False,
                        pad_token_id=tokenizer.pad_token_id,
                    )
                new = answers[:, batch["input_ids"].shape[1] :]
                ended = (new == tokenizer.eos_token_id).int().cumsum(-1)
                tokens += int((ended == 0).sum()) + int((ended[:, -1] > 0).sum())
            measured.append(tokens / (time.perf_counter() - begun))
        rates[size] = round(median(measured), 1)
    best = max(rates, key=rates.__getitem__)
    return {"tokens/s": rates[best], "batch": best, "by batch": rates}


async def measure(
    folder: Path, model: str, prompts: Sequence[str], rounds: int, clients: int, minutes: float
) -> dict[str, Any]:
    settings = settings_from({"OUTPUT_DIR": str(folder / "runs"), "BACKEND": "local"})
    figures: dict[str, Any] = {}
    with ExitStack() as stack:
        models = models_to_serve([model], settings)
        server = stack.enter_context(running_server(models, Progress(lambda line: None)))
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=server.url, timeout=PATIENCE, limits=limits
        ) as client:
            (name, *_) = [one["id"] for one in (await client.get("/v1/models")).json()["data"]]
            await ask_all(client, name, prompts[:CLIENTS], CLIENTS)  # the model is loaded now
            for at_once in (1, CLIENTS):
                some = prompts if at_once > 1 else prompts[:CLIENTS]
                rates: list[float] = []
                firsts: list[float] = []
                for _ in range(rounds):
                    begun = time.perf_counter()
                    tokens = sum(await ask_all(client, name, some, at_once))
                    rates.append(tokens / (time.perf_counter() - begun))
                    firsts += await first_tokens(client, name, some[:CLIENTS], at_once)
                who = f"{at_once} client{'s' if at_once > 1 else ''}"
                figures[f"tokens/s, {who}"] = round(median(rates), 1)
                figures[f"first token, ms, {who}"] = round(1000 * median(firsts), 1)
            if minutes:
                figures["load"] = await load(client, name, prompts, clients, 60 * minutes)
    return figures


def body(name: str, prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": name, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0, **more}


async def ask_all(
    client: httpx.AsyncClient, name: str, prompts: Sequence[str], at_once: int
) -> list[int]:
    """The number of tokens of each answer."""
    turn = asyncio.Semaphore(at_once)

    async def ask(prompt: str) -> int:
        async with turn:
            answer = await client.post("/v1/completions", json=body(name, prompt))
        answer.raise_for_status()
        return int(answer.json()["usage"]["completion_tokens"])

    return await asyncio.gather(*map(ask, prompts))


async def first_tokens(
    client: httpx.AsyncClient, name: str, prompts: Sequence[str], at_once: int
) -> list[float]:
    """Seconds to the first piece of each streamed answer."""
    turn = asyncio.Semaphore(at_once)

    async def ask(prompt: str) -> float:
        async with turn:
            begun, first = time.perf_counter(), 0.0
            request = body(name, prompt, stream=True)
            async with client.stream("POST", "/v1/completions", json=request) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {") and not first:
                        first = time.perf_counter() - begun
            return first

    return await asyncio.gather(*map(ask, prompts))


async def load(
    client: httpx.AsyncClient, name: str, prompts: Sequence[str], clients: int, seconds: float
) -> dict[str, Any]:
    """Clients that ask one question after the other until the time is over."""
    end = time.perf_counter() + seconds
    answers, errors = 0, 0

    async def ask(number: int) -> None:
        nonlocal answers, errors
        while time.perf_counter() < end:
            request = body(name, prompts[number % len(prompts)])
            try:
                answer = await client.post("/v1/completions", json=request)
                if answer.status_code == 200:
                    answers += 1
                else:
                    errors += 1
            except httpx.HTTPError:
                errors += 1
            number += clients

    await asyncio.gather(*map(ask, range(clients)))
    return {"clients": clients, "seconds": seconds, "answers": answers, "errors": errors}


if __name__ == "__main__":
    main()
