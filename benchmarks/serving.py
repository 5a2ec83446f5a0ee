"""`tinkersmith serve` against transformers' `generate`: tokens a second, and the first token.

Both get the same prompts at once and take the most likely tokens to the same end. `generate` gets
them in batches of the size that suits it best of those tried. The server is a process of its own,
and gets them from clients that each wait for their answer. The sides take turns, round by round, so
that other programs on the machine hold up both. Then many clients ask the bundled model without a
pause, and errors are counted.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.results_file import write_results
from tinkersmith.bundled import BUNDLED_MODELS

BUNDLED = "tinkersmith/tiny-math"
ROOT = Path(__file__).resolve().parent.parent
PROMPTS = 64
ANSWER_TOKENS = 64
BATCHES = (8, 16, 32, 64)  # of `generate`
CLIENTS = (1, 16, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=64, help="of the load without a pause")
    parser.add_argument("--minutes", type=float, default=2.0, help="of that load; 0 leaves it out")
    options = parser.parse_args()
    prompts = read_prompts(PROMPTS)
    figures: dict[str, Any] = {
        "prompts": PROMPTS,
        "tokens of an answer, at most": ANSWER_TOKENS,
        "cores used by other programs at the start": round(busy_cores(3.0), 1),
    }
    with tempfile.TemporaryDirectory() as temporary:
        wide = make_wide_model(Path(temporary) / "qwen3-512")
        for title, model, folder in (
            ("bundled", BUNDLED, BUNDLED_MODELS[BUNDLED]),
            ("random Qwen3 of hidden 512", str(wide), wide),
        ):
            with running_serve(model, Path(temporary)) as port:
                figures[title] = asyncio.run(compare(port, folder, prompts, options.rounds))
                print(json.dumps({title: figures[title]}, indent=2), flush=True)
                if options.minutes and model == BUNDLED:
                    asked = load(port, prompts, options.clients, 60 * options.minutes)
                    figures["load"] = asyncio.run(asked)
                    print(json.dumps(figures["load"]), flush=True)
    command = (
        f"python -m benchmarks.serving --rounds {options.rounds} --clients {options.clients} "
        f"--minutes {options.minutes:g}"
    )
    print("written:", write_results("serving", command, figures))
    if options.minutes and figures["load"]["errors"]:
        sys.exit(1)


# ---- what is asked


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


def busy_cores(seconds: float) -> float:
    """How many cores other programs use now."""

    def used() -> float:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        times = [int(field) for field in fields[:8]]
        return (sum(times) - times[3] - times[4]) / os.sysconf("SC_CLK_TCK")

    before, own, begun = used(), time.process_time(), time.perf_counter()
    time.sleep(seconds)
    own = time.process_time() - own
    return max(0.0, (used() - before - own) / (time.perf_counter() - begun))


# ---- the two sides


async def compare(
    port: int, folder: Path, prompts: Sequence[str], rounds: int
) -> dict[str, dict[str, Any] | float]:
    """Both sides' figures, and how many times the tokens a second of `generate` the server has."""
    rates: dict[str, list[float]] = {}
    firsts: dict[int, list[float]] = {count: [] for count in CLIENTS}
    generate = fastest_generate(folder, prompts)
    async with clients_of(port, 16) as clients:
        await ask_all(clients, prompts)  # it has met every shape of product now
    for _ in range(rounds):
        for size in BATCHES:
            rate = generate.answer(prompts, size)
            rates.setdefault(f"batch {size}", []).append(rate)
        for count in CLIENTS:
            some = prompts if count > 1 else prompts[:16]
            async with clients_of(port, count) as clients:
                begun = time.perf_counter()
                tokens = await ask_all(clients, some)
                rate = tokens / (time.perf_counter() - begun)
                rates.setdefault(clients_text(count), []).append(rate)
                firsts[count] += await first_tokens(clients, some[: max(count, 4)])
    by_batch = {size: round(median(rates[f"batch {size}"]), 1) for size in BATCHES}
    served = {
        clients_text(count): round(median(rates[clients_text(count)]), 1) for count in CLIENTS
    }
    best = max(by_batch, key=by_batch.__getitem__)
    most = max(served, key=served.__getitem__)
    return {
        "generate": {
            "tokens/s": by_batch[best],
            "batch": best,
            "by batch": by_batch,
            "dtype": generate.dtype,
        },
        "served": {
            "tokens/s": served[most],
            "by clients": served,
            "first token, ms": {
                clients_text(count): round(1000 * median(firsts[count]), 1) for count in CLIENTS
            },
        },
        "tokens/s, served / generate": round(served[most] / by_batch[best], 2),
    }


def clients_text(count: int) -> str:
    return f"{count} client{'s' if count > 1 else ''}"


class Generate:
    """transformers' `generate` on a folder's model."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self._model, self.dtype = model.eval(), dtype

    def answer(self, prompts: Sequence[str], size: int) -> float:
        """Answer the prompts in batches; gives the tokens a second, up to each answer's end."""
        import torch

        tokenizer, tokens, begun = self._tokenizer, 0, time.perf_counter()
        for start in range(0, len(prompts), size):
            batch = tokenizer(
                list(prompts[start : start + size]), return_tensors="pt", padding=True
            )
            with torch.inference_mode():
                answers = self._model.generate(
                    **batch,
                    max_new_tokens=ANSWER_TOKENS,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
            new = answers[:, batch["input_ids"].shape[1] :]
            ended = (new == tokenizer.eos_token_id).int().cumsum(-1)
            tokens += int((ended == 0).sum()) + int((ended[:, -1] > 0).sum())
        return tokens / (time.perf_counter() - begun)


def fastest_generate(folder: Path, prompts: Sequence[str]) -> Generate:
    """`generate` in fp32 or bf16, whichever is faster here."""
    both = [Generate(folder, dtype) for dtype in ("float32", "bfloat16")]
    rates: list[float] = []
    for generate in both:
        generate.answer(prompts[:8], 8)  # it has met the shapes of products
        rates.append(generate.answer(prompts[:8], 8))
    return both[rates.index(max(rates))]


@contextmanager
def running_serve(model: str, folder: Path) -> Iterator[int]:
    """`tinkersmith serve` on a base model; gives its port."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TINKER_")
    }
    command = [
        *(sys.executable, "-m", "tinkersmith", "serve", model, "--port", "0"),
        *("--set", f"OUTPUT_DIR={folder / 'runs'}", "--set", "BACKEND=local"),
    ]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Serving http://" in line:
                yield int(line.split("/v1")[0].rpartition(":")[2])
                break
        else:
            raise SystemExit("tinkersmith serve has not started; its message is above.")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


# ---- clients


@dataclass
class Client:
    """One connection, with as little work a request as can be: the cores are the server's."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    model: str = ""

    async def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> int:
        """Send a request; gives the status, once the answer's head is there."""
        content = b"" if body is None else json.dumps({"model": self.model, **body}).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        self.writer.write(head.encode() + content)
        status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines if line)
        self._length = int(fields["content-length"]) if "content-length" in fields else None
        return int(status.split()[1])

    _length: int | None = None  # of the answer that is being read; None: it comes in chunks

    async def pieces(self) -> AsyncIterator[bytes]:
        if self._length is not None:
            yield await self.reader.readexactly(self._length)
            return
        while size := int(await self.reader.readline(), 16):
            yield await self.reader.readexactly(size)
            await self.reader.readline()
        await self.reader.readline()

    async def answer(self) -> Any:
        return json.loads(b"".join([piece async for piece in self.pieces()]))


@asynccontextmanager
async def clients_of(port: int, count: int) -> AsyncIterator[list[Client]]:
    clients = [Client(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(count)]
    try:
        await clients[0].send("GET", "/v1/models")
        name = (await clients[0].answer())["data"][0]["id"]
        for client in clients:
            client.model = name
        yield clients
    finally:
        for client in clients:
            client.writer.close()


def body(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0, **more}


async def ask_all(clients: Sequence[Client], prompts: Sequence[str]) -> int:
    """Each client asks the next prompt as soon as it has its answer; gives the tokens of all."""
    waiting, tokens = iter(prompts), 0

    async def ask(client: Client) -> None:
        nonlocal tokens
        for prompt in waiting:
            status = await client.send("POST", "/v1/completions", body(prompt))
            answer = await client.answer()
            if status != 200:
                raise SystemExit(f"The server answers {status}: {answer}")
            tokens += int(answer["usage"]["completion_tokens"])

    await asyncio.gather(*map(ask, clients))
    return tokens


async def first_tokens(clients: Sequence[Client], prompts: Sequence[str]) -> list[float]:
    """Seconds from each streamed request to its first piece; all clients ask at once."""
    waiting, seconds = iter(prompts), list[float]()

    async def ask(client: Client) -> None:
        for prompt in waiting:
            begun, first = time.perf_counter(), 0.0
            await client.send("POST", "/v1/completions", body(prompt, stream=True))
            async for piece in client.pieces():
                first = first or (time.perf_counter() - begun if b"data: {" in piece else 0.0)
            seconds.append(first)

    await asyncio.gather(*map(ask, clients))
    return seconds


async def load(
    port: int, prompts: Sequence[str], count: int, seconds: float
) -> dict[str, float | int | str]:
    """Clients that ask one question after the other until the time is over."""
    end, answers, errors, example = time.perf_counter() + seconds, 0, 0, ""

    async def ask(client: Client, number: int) -> None:
        nonlocal answers, errors, example
        while time.perf_counter() < end:
            try:
                status = await client.send(
                    "POST", "/v1/completions", body(prompts[number % len(prompts)])
                )
                answer = await client.answer()
                if status == 200 and answer["choices"][0]["finish_reason"] in ("stop", "length"):
                    answers += 1
                else:
                    errors, example = errors + 1, f"{status}: {answer}"
            except (OSError, EOFError, ValueError, KeyError) as error:
                errors, example = errors + 1, repr(error)
                return  # the connection is gone
            number += count

    async with clients_of(port, count) as clients:
        await asyncio.gather(*(ask(client, number) for number, client in enumerate(clients)))
    figures = {"clients": count, "seconds": seconds, "answers": answers, "errors": errors}
    return {**figures, "an error": example} if errors else figures


if __name__ == "__main__":
    main()
