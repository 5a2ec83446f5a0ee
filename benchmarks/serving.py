"""`tinkersmith serve` against transformers: its own server, and `generate` without one.

All get the same prompts and take the most likely tokens to the same end. The servers are processes
of their own, and get the prompts through HTTP from the same light clients, which each wait for
their answer. `transformers serve` runs as it does by default, one request after the other, and with
its continuous batching. `generate` gets all prompts at once, in batches of the size that suits it
best, without HTTP. The sides take turns, round by round, so that other programs on the machine hold
up all. Then many clients ask our server without a pause, and errors are counted.

Each part is written to benchmarks/results/serving.json as soon as it is measured; `--parts` chooses
some of them and keeps the figures of the others. Exits with 1 if a request of the load fails.
"""

import argparse
import asyncio
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.results_file import RESULTS, write_results
from benchmarks.transformers_serve import python_with_serve, running_transformers_serve
from tinkersmith.bundled import BUNDLED_MODELS

BUNDLED = "tinkersmith/tiny-math"
ROOT = Path(__file__).resolve().parent.parent
PROMPTS = 64
# Of an answer, at most. Those of the random model never end, so fewer are enough.
ANSWER_TOKENS = {"bundled": 64, "wide": 32, "load": 64}
BATCHES = (8, 16, 32, 64)  # of `generate`
CLIENTS = (1, 16, 64)


PARTS = ("bundled", "wide", "load")
TITLES = {"bundled": "bundled", "wide": "random Qwen3 of hidden 512", "load": "load"}
OURS = "tinkersmith serve"
ONE_BY_ONE, CONTINUOUS = "transformers serve", "transformers serve --continuous-batching"
CLIENTS_OF = {OURS: CLIENTS, ONE_BY_ONE: (1, 16), CONTINUOUS: CLIENTS}
# Prompts that a number of clients ask for. One after the other takes a while.
PROMPTS_OF = {1: 16, 16: PROMPTS, 64: PROMPTS}
SLOW_PROMPTS = 16  # all that a server gets that answers one request after the other
NEAR_BEST = 0.8  # batches of `generate` that were slower in the first round are not tried again
TRIAL_TOKENS = 8  # of an answer, to find a precision that is far slower than the other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64, help="of the load without a pause")
    parser.add_argument("--minutes", type=float, default=2.0, help="of that load")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--python", type=Path, help="one that has transformers[serving]; default: one of its own"
    )
    options = parser.parse_args()
    prompts, failed = read_prompts(PROMPTS), False
    for part in options.parts:
        tokens = ANSWER_TOKENS[part]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            before = {"cores used by other programs before": round(busy_cores(3.0), 1)}
            wide = part == "wide"
            model = str(make_wide_model(folder / "qwen3-512")) if wide else BUNDLED
            if part == "load":
                with running_serve(model, folder) as port:
                    asked = load(port, prompts, tokens, options.clients, 60 * options.minutes)
                    found: dict[str, Any] = asyncio.run(asked)
                failed = bool(found["errors"])
            else:
                python = options.python or python_with_serve()
                model_folder = Path(model) if wide else BUNDLED_MODELS[BUNDLED]
                sides = Sides(model, model_folder, python, folder)
                found = compare(sides, prompts, tokens, options.rounds)
            print(json.dumps({TITLES[part]: before | found}, indent=2), flush=True)
            found = before | {"tokens of an answer, at most": tokens} | found
            write_part(TITLES[part], found, options.rounds, options.minutes)
    if failed:
        sys.exit(1)


def write_part(title: str, found: dict[str, Any], rounds: int, minutes: float) -> None:
    """Write one part's figures beside those of the others that are there."""
    file = RESULTS / "serving.json"
    figures: dict[str, Any] = {"prompts": PROMPTS}
    if file.is_file():
        earlier = json.loads(file.read_text(encoding="utf-8"))["figures"]
        figures |= {
            name: earlier[name] for name in TITLES.values() if "date" in earlier.get(name, {})
        }
    figures[title] = {"date": dt.date.today().isoformat(), **found}
    command = f"python -m benchmarks.serving --rounds {rounds} --minutes {minutes:g}"
    print("written:", write_results("serving", command, figures))


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


# ---- the sides


@dataclass(frozen=True)
class Sides:
    """What the sides are started with."""

    model: str
    folder: Path  # of the model
    python: Path  # one that has `transformers serve`
    temporary: Path


def compare(sides: Sides, prompts: Sequence[str], tokens: int, rounds: int) -> dict[str, Any]:
    """The figures of all sides, and how many times the tokens a second of the others ours has."""
    model, folder, temporary = sides.model, sides.folder, sides.temporary
    generate = fastest_generate(folder, prompts, tokens)
    with ExitStack() as stack:
        servers = {OURS: Server(stack.enter_context(running_serve(model, temporary)), "")}
        logs: dict[str, Path] = {}
        for name in (ONE_BY_ONE, CONTINUOUS):
            logs[name] = log = temporary / f"{len(servers)}.log"
            running = running_transformers_serve(
                sides.python, folder, generate.dtype, log, continuous=name == CONTINUOUS
            )
            servers[name] = Server(stack.enter_context(running), str(folder))
        texts: dict[str, list[str]] = {}
        failed: dict[str, str] = {}
        for name, server in list(servers.items()):
            try:
                texts[name] = asyncio.run(warm_up(server, prompts, tokens))
            except (OSError, EOFError, ValueError, LookupError) as error:
                if name == OURS:
                    raise
                lines = logs[name].read_text(errors="replace").strip().splitlines()
                failed[name] = f"{error!r}; its log ends with: {' | '.join(lines[-3:])[-600:]}"
                print(f"{name} cannot be measured: {failed[name]}", flush=True)
                del servers[name]
        rates: dict[str, list[float]] = {}
        batches = BATCHES
        for _ in range(rounds):
            for size in batches:
                rate = generate.answer(prompts, size, tokens)
                rates.setdefault(f"batch {size}", []).append(rate)
            best = max(median(rates[f"batch {size}"]) for size in batches)
            batches = [
                size for size in batches if median(rates[f"batch {size}"]) > NEAR_BEST * best
            ]
            for name, server in servers.items():
                some = prompts[:SLOW_PROMPTS] if name == ONE_BY_ONE else prompts
                asyncio.run(server.measure(some, tokens, CLIENTS_OF[name]))
    by_batch = {size: round(median(rates[f"batch {size}"]), 1) for size in BATCHES}
    most = max(by_batch, key=by_batch.__getitem__)
    found: dict[str, Any] = {
        "generate": {
            "tokens/s": by_batch[most],
            "batch": most,
            "by batch": by_batch,
            "dtype": generate.dtype,
        },
        **{name: server.figures() for name, server in servers.items()},
    }
    for name in texts.keys() - {OURS}:
        pairs = zip(texts[OURS], texts[name], strict=True)
        found[name]["answers of 16 equal to ours"] = sum(ours == theirs for ours, theirs in pairs)
    ours = found[OURS]["tokens/s"]
    for name in ("generate", *servers):
        if name != OURS:
            found[f"tokens/s, ours / {name}"] = round(ours / found[name]["tokens/s"], 2)
    if failed:
        found["not measured"] = failed
    return found


@dataclass
class Server:
    """A running server, and what was measured of it."""

    port: int
    model: str  # "": the first that it lists
    rates: dict[int, list[float]] = field(default_factory=dict)  # by clients
    firsts: dict[int, list[float]] = field(default_factory=dict)

    async def measure(self, prompts: Sequence[str], tokens: int, counts: Sequence[int]) -> None:
        for count in counts:
            some = prompts[: PROMPTS_OF[count]]
            async with clients_of(self.port, count, self.model) as clients:
                begun = time.perf_counter()
                answered = await ask_all(clients, some, tokens)
                rate = answered / (time.perf_counter() - begun)
                self.rates.setdefault(count, []).append(rate)
            # New connections: some servers close one that is idle for some seconds.
            async with clients_of(self.port, count, self.model) as clients:
                first = await first_tokens(clients, some[: max(count, 4)], tokens)
                self.firsts.setdefault(count, []).extend(first)

    def figures(self) -> dict[str, Any]:
        by_clients = {count: round(median(rates), 1) for count, rates in self.rates.items()}
        return {
            "tokens/s": max(by_clients.values()),
            "by clients": {clients_text(count): rate for count, rate in by_clients.items()},
            "first token, ms": {
                clients_text(count): round(1000 * median(seconds), 1)
                for count, seconds in self.firsts.items()
            },
        }


async def warm_up(server: Server, prompts: Sequence[str], tokens: int) -> list[str]:
    """Have a server meet the shapes of products; gives its answers to the first 16 prompts."""

    async def text_of(client: Client, prompt: str) -> str:
        await client.send("POST", "/v1/completions", body(prompt, tokens))
        return str((await client.answer())["choices"][0]["text"])

    async with clients_of(server.port, 16, server.model) as clients:
        return list(await asyncio.gather(*map(text_of, clients, prompts[:16])))


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

    def answer(self, prompts: Sequence[str], size: int, most: int) -> float:
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
                    max_new_tokens=most,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
            new = answers[:, batch["input_ids"].shape[1] :]
            ended = (new == tokenizer.eos_token_id).int().cumsum(-1)
            tokens += int((ended == 0).sum()) + int((ended[:, -1] > 0).sum())
        return tokens / (time.perf_counter() - begun)


def fastest_generate(folder: Path, prompts: Sequence[str], tokens: int) -> Generate:
    """`generate` in fp32 or bf16, whichever is faster here in its best batch."""
    both = [Generate(folder, dtype) for dtype in ("float32", "bfloat16")]
    trials = [generate.answer(prompts, BATCHES[-1], TRIAL_TOKENS) for generate in both]
    if min(trials) < max(trials) / 2:  # bf16 may take minutes where the processor has none
        return both[trials.index(max(trials))]
    rates = [
        max(generate.answer(prompts, batch, tokens) for batch in BATCHES[-2:] * 2)
        for generate in both
    ]
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
async def clients_of(port: int, count: int, model: str = "") -> AsyncIterator[list[Client]]:
    """Connections to a server, which ask for `model`; "": the first that the server lists."""
    clients = [Client(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(count)]
    try:
        if not model:
            await clients[0].send("GET", "/v1/models")
            model = (await clients[0].answer())["data"][0]["id"]
        for client in clients:
            client.model = model
        yield clients
    finally:
        for client in clients:
            client.writer.close()


def body(prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, **more}


async def ask_all(clients: Sequence[Client], prompts: Sequence[str], most: int) -> int:
    """Each client asks the next prompt as soon as it has its answer; gives the tokens of all."""
    waiting, tokens = iter(prompts), 0

    async def ask(client: Client) -> None:
        nonlocal tokens
        for prompt in waiting:
            status = await client.send("POST", "/v1/completions", body(prompt, most))
            answer = await client.answer()
            if status != 200:
                raise SystemExit(f"The server answers {status}: {answer}")
            tokens += int(answer["usage"]["completion_tokens"])

    await asyncio.gather(*map(ask, clients))
    return tokens


async def first_tokens(
    clients: Sequence[Client], prompts: Sequence[str], tokens: int
) -> list[float]:
    """Seconds from each streamed request to its first piece; all clients ask at once."""
    waiting, seconds = iter(prompts), list[float]()

    async def ask(client: Client) -> None:
        for prompt in waiting:
            begun, first = time.perf_counter(), 0.0
            await client.send("POST", "/v1/completions", body(prompt, tokens, stream=True))
            async for piece in client.pieces():
                first = first or (time.perf_counter() - begun if b"data: {" in piece else 0.0)
            seconds.append(first)

    await asyncio.gather(*map(ask, clients))
    return seconds


async def load(
    port: int, prompts: Sequence[str], tokens: int, count: int, seconds: float
) -> dict[str, float | int | str]:
    """Clients that ask one question after the other until the time is over."""
    end, answers, errors, example = time.perf_counter() + seconds, 0, 0, ""

    async def ask(client: Client, number: int) -> None:
        nonlocal answers, errors, example
        while time.perf_counter() < end:
            try:
                status = await client.send(
                    "POST", "/v1/completions", body(prompts[number % len(prompts)], tokens)
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
