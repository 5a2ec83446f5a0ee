"""An export and the address of a server that serves it -> a table in the export's README.md.

The prompts are those of the run. The reference is the export itself, loaded by plain transformers
(and peft) in float32, so no engine and no service takes part.
"""

import datetime as dt
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkersmith.data.large_files import iterate_samples
from tinkersmith.data.samples import Sample, Source, alpaca_sample
from tinkersmith.errors import UserError, one_line, reason_of, unreadable
from tinkersmith.export.base_folder import read_model_json
from tinkersmith.export.download import model_folder
from tinkersmith.export.proof.compare import (
    ROUNDING_MAX,
    ROUNDING_MEAN,
    Proof,
    ProofCase,
    compare,
)
from tinkersmith.export.proof.reference import Reference
from tinkersmith.export.proof.server import CHAT_MESSAGES, TOKEN_IDS, ModelServer, connect
from tinkersmith.export.verify import load_exported_adapter, load_whole_model
from tinkersmith.files import write_atomically
from tinkersmith.models.names import local_model_folder
from tinkersmith.peft_format import ADAPTER_CONFIG
from tinkersmith.plurals import counted
from tinkersmith.progress import watched
from tinkersmith.prompts.guards import GUARDED
from tinkersmith.prompts.sandbox import TemplateRefusal, render_chat
from tinkersmith.prompts.text_tokenizer import generation_ends_of
from tinkersmith.text.pieces import UnusableSample, user_text

if TYPE_CHECKING:
    from tinkersmith.prompts.text_tokenizer import TextTokenizer
    from tinkersmith.runs.folder import RunFolder
    from tinkersmith.text.templates import PromptTemplate

PROMPTS = 8
ANSWER_TOKENS = 32
_LONGEST_PROMPT = 1024  # tokens
_TRIED = 200  # samples of a file: some are too long, and some equal others
_BEGIN, _END = "<!-- proof:begin -->", "<!-- proof:end -->"
_SOURCE = re.compile(r"^Source: `(tinker://[^`\s]+)`", re.MULTILINE)
_HEADINGS = ("Check", "Sent as", "Agree", "Largest difference", "Mean")


@dataclass(frozen=True, slots=True)
class TrainedPrompt:
    """A prompt as it was trained, in the three forms in which a server may take it."""

    tokens: tuple[int, ...]
    text: str | None  # None: a text cannot say it, since it quotes a control token
    messages: list[dict[str, Any]] | None  # None: no messages write it
    tools: list[dict[str, Any]]


def prove_export(
    url: str,
    folder: Path,
    *,
    run: "RunFolder | None",
    model_name: str = "",
    base_folder: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Proof:
    """Compare what the server at `url` answers with what the export in `folder` answers.

    The table replaces the last one in the folder's README.md, also where something differs.

    Args:
        run: the run that the export comes from, for its prompts; None if no run folder knows it.
        model_name: the model on the server; "" for the only one.
        base_folder: the base model's folder, if an adapter's is not found.

    Raises:
        UserError: the server or the export cannot be used.
    """
    from tinkersmith.text.templates import template_from_json
    from tinkersmith.text.tokenizer import load_tokenizer

    refuse_other_folders(folder)
    with ExitStack() as guard:
        progress = guard.enter_context(watched(say))
        with progress.doing("asking the server for its models"):
            server = guard.enter_context(closing(connect(url, model_name)))
        model = one_line(server.model)
        say(f"Proving {folder} against {model} of {server.program} at {server.url}")
        template = template_from_json(read_model_json(folder / "prompt_template.json"))
        tokenizer = load_tokenizer(folder)
        prompts, where = _prompts(folder, template, tokenizer, run)
        say(f"  {counted(len(prompts), 'prompt')} {where}, answers of up to {ANSWER_TOKENS} tokens")
        with progress.doing("loading the export with transformers"):
            reference = _reference(folder, template, tokenizer, run, base_folder)
        cases: list[ProofCase] = []
        silent: set[str] = set()
        for number, prompt in enumerate(prompts, 1):
            with progress.doing(f"asking the server and the export, prompt {number}"):
                cases.append(_asked(server, reference, prompt, tokenizer, silent))
        with progress.doing("comparing the answers"):
            proof = compare(cases, server.sends, ANSWER_TOKENS, reference, tokenizer)
        proof.not_compared += sorted(silent)
        if not proof.rows:
            raise UserError(
                f"The server at {server.url} answered nothing that can be compared. "
                + " ".join(proof.not_compared)
            )
        also = f" and, where they can be, as {CHAT_MESSAGES}"
        say(
            f"  Prompts were sent as {server.sends}{also if server.sends != CHAT_MESSAGES else ''}."
        )
        for line in proof_lines(proof):
            say(line)
        _write_card(folder, server, proof, len(prompts), where)
        say(f"The table is in {folder / 'README.md'}.")
    return proof


def refuse_other_folders(folder: Path) -> None:
    """Refuse what is no adapter and no merged model.

    Raises:
        UserError: says what is missing.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist, so there is nothing to prove. Export the model first: leave "
            "--prove out, and serve that folder."
        )
    if not (folder / "prompt_template.json").is_file() or not (
        (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file()
    ):
        raise UserError(
            f"{folder} is not an exported adapter or merged model: it lacks prompt_template.json, "
            f"or {ADAPTER_CONFIG} and config.json. Name one with --out; for a GGUF file, name the "
            "adapter or the merged model of the same checkpoint."
        )


def source_of(folder: Path) -> str:
    """The tinker:// path that an export's README.md names; "" if none."""
    match = _SOURCE.search(_readme(folder))
    return match[1] if match else ""


# ---- the prompts


def _prompts(
    folder: Path,
    template: "PromptTemplate",
    tokenizer: "TextTokenizer",
    run: "RunFolder | None",
) -> tuple[list[TrainedPrompt], str]:
    """Some prompts as they were trained, and where they come from, as an end of a sentence."""
    chat_template = folder / "chat_template.jinja"
    source = chat_template.read_text(encoding="utf-8") if chat_template.is_file() else ""
    for samples, where in _places_of_prompts(run):
        chosen: dict[tuple[int, ...], TrainedPrompt] = {}
        with suppress(UserError, OSError):  # the files may have gone since
            for sample in islice(samples, _TRIED):
                prompt = _trained_prompt(sample, template, tokenizer, source)
                if prompt is not None:
                    chosen.setdefault(prompt.tokens, prompt)
                if len(chosen) == PROMPTS:
                    break
        if chosen:
            return list(chosen.values()), where
    raise UserError(
        f"The prompt template in {folder} writes no prompt of fewer than {_LONGEST_PROMPT:,} "
        "tokens, so there is nothing to ask the server."
    )


def _places_of_prompts(run: "RunFolder | None") -> Iterator[tuple[Iterator[Sample], str]]:
    if run is not None:
        settings = run.settings()
        for files, kind in (
            (settings.eval_files, "test"),
            (settings.validation_files, "validation"),
            (settings.training_files, "training"),
        ):
            if files:
                samples = iterate_samples(files, settings.columns, settings.encoding)
                yield samples, f"of the run's {kind} data"
    here = Source("", 1)
    fixed = [
        alpaca_sample(instruction="Say hello.", input="", output="Hello!", source=here),
        alpaca_sample(instruction="3 + 4 = ?", input="", output="7", source=here),
        alpaca_sample(instruction="Name a colour.", input="", output="Red", source=here),
    ]
    yield iter(fixed), "of our own, since the run's data files are not here"


def _trained_prompt(
    sample: Sample, template: "PromptTemplate", tokenizer: "TextTokenizer", chat_template: str
) -> TrainedPrompt | None:
    """The prompt of a sample; None if it was not trained, or is too long."""
    try:
        written = template.render_prompt(sample)
        written.encode()  # a lone surrogate cannot be sent
    except (UnusableSample, UnicodeEncodeError):
        return None
    tokens = tuple(int(token) for token in tokenizer.encode(written))
    if not tokens or len(tokens) > _LONGEST_PROMPT:
        return None
    if GUARDED in written:
        return TrainedPrompt(tokens, None, None, [])
    messages = _messages(sample, template, chat_template, written)
    # A server puts the begin token in front of a text itself, where the tokenizer wants one.
    text = written.removeprefix(tokenizer.begin_text)
    return TrainedPrompt(tokens, text, messages, list(sample.tools))


def _messages(
    sample: Sample, template: "PromptTemplate", chat_template: str, written: str
) -> list[dict[str, Any]] | None:
    """Chat messages that the export's chat template writes as `written`; None if there are none."""
    if not chat_template or sample.turns[-1].role != "assistant":
        return None
    named: Mapping[str, Any] = getattr(template, "named_tokens", {})
    date = str(getattr(template, "date", "") or dt.date.today().isoformat())
    for joint in ("\n\n", "\nInput: ", "\n\n### Input:\n", "\n", " "):
        messages: list[dict[str, Any]] = []
        for turn in sample.context:
            text = f"{turn.text}{joint}{turn.input}" if turn.input else user_text(turn)
            message: dict[str, Any] = {"role": turn.role, "content": text}
            if turn.tool_name:
                message["name"] = turn.tool_name
            if turn.tool_calls:
                message["tool_calls"] = list(turn.tool_calls)
            messages.append(message)
        with suppress(TemplateRefusal):
            rendered = render_chat(
                chat_template,
                date,
                messages,
                named,
                tools=list(sample.tools) or None,
                add_generation_prompt=True,
            )
            if rendered == written:
                return messages
    return None


# ---- the two sides


def _reference(
    folder: Path,
    template: "PromptTemplate",
    tokenizer: "TextTokenizer",
    run: "RunFolder | None",
    base_folder: str | Path | None,
) -> Reference:
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    ends = {end_token(template, tokenizer), *tokenizer.generation_ends}
    if is_adapter:
        config = read_model_json(folder / ADAPTER_CONFIG)
        name = str(config.get("base_model_name_or_path") or "")
        base = model_folder(name, "", base_folder, weights=True)
        ends |= set(generation_ends_of(base))
        model, _ = load_exported_adapter(folder, base)
        return Reference(model, sorted(ends), None)
    model, _ = load_whole_model(folder)
    base = None
    with suppress(UserError):
        name = run.base_model() if run is not None else ""
        base = Path(base_folder) if base_folder else local_model_folder(name) if name else None
    if base is None:
        return Reference(model, sorted(ends), None)
    there = base
    return Reference(model, sorted(ends), lambda: load_whole_model(there)[0])


def end_token(template: "PromptTemplate", tokenizer: "TextTokenizer") -> int:
    """The token that ends a trained answer."""
    special = (token for token in tokenizer.special_tokens if template.end.endswith(token))
    return tokenizer.special_tokens[next(special, tokenizer.eos_text)]


def _asked(
    server: ModelServer,
    reference: Reference,
    prompt: TrainedPrompt,
    tokenizer: "TextTokenizer",
    silent: set[str],
) -> ProofCase:
    """What both sides answer to a prompt; `silent` gets what cannot be compared."""
    expected = reference.greedy(prompt.tokens, ANSWER_TOKENS)
    completion = text_tokens = None
    if server.sends != CHAT_MESSAGES:
        completion = server.complete(prompt.tokens, prompt.text, ANSWER_TOKENS)
        if completion is None and server.sends == CHAT_MESSAGES:
            silent.add(f"The server has no {server.url}/completions.")
        elif completion is None:
            silent.add("A prompt that quotes a control token cannot be sent as text.")
    if completion is not None and prompt.text is not None and server.sends == TOKEN_IDS:
        text_tokens = server.tokens_of(prompt.text)
    chat = chat_tokens = None
    if prompt.messages is None:
        silent.add("Some prompts cannot be written as chat messages, or only with an input field.")
    elif not prompt.tools:
        try:
            chat = server.chat(prompt.messages, ANSWER_TOKENS)
        except UserError as error:
            silent.add(f"Chat messages were not compared: {error}.")
        else:
            if chat is None:
                silent.add(f"The server has no {server.url}/chat/completions.")
    if chat is not None and chat.prompt_tokens is None and prompt.messages is not None:
        chat_tokens = server.chat_tokens_of(prompt.messages)
    return ProofCase(prompt.tokens, tuple(expected), completion, text_tokens, chat, chat_tokens)


# ---- the table


def proof_lines(proof: Proof) -> list[str]:
    """The table for a terminal, and what was not compared."""
    rows = [list(_HEADINGS), *[row.cells() for row in proof.rows]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [*lines, *[f"  Not compared: {sentence}" for sentence in proof.not_compared]]


def _write_card(folder: Path, server: ModelServer, proof: Proof, prompts: int, where: str) -> None:
    """Put the table into README.md, in place of the last one.

    Raises:
        UserError: the file cannot be read or written.
    """
    about = (
        f"{dt.date.today().isoformat()}: {counted(prompts, 'prompt')} {where}, sent to "
        f"{server.program} as {server.sends}. Greedy answers of up to {ANSWER_TOKENS} tokens. "
        "Reference: this folder in plain transformers, float32. A log-probability may differ by "
        f"{ROUNDING_MAX:g}, and by {ROUNDING_MEAN:g} in the mean."
    )
    section = [
        _BEGIN,
        "## Served and compared",
        "",
        about,
        "",
        "| " + " | ".join(_HEADINGS) + " |",
        "| " + " | ".join("---" for _ in _HEADINGS) + " |",
        *["| " + " | ".join(row.cells()) + " |" for row in proof.rows],
        "",
        *[f"- {sentence}" for sentence in proof.faults or ["Nothing differs beyond rounding."]],
        *[f"- Not compared: {sentence}" for sentence in proof.not_compared],
        _END,
    ]
    before = _readme(folder)
    start, end = before.find(_BEGIN), before.find(_END)
    block = "\n".join(section)
    if 0 <= start < end:
        text = before[:start] + block + before[end + len(_END) :]
    else:
        text = f"{before.rstrip()}\n\n{block}\n".lstrip()
    try:
        write_atomically(folder / "README.md", text)
    except OSError as error:
        raise UserError(
            f"{folder / 'README.md'} cannot be written: {reason_of(error)}. The table is above."
        ) from None


def _readme(folder: Path) -> str:
    path = folder / "README.md"
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text. Convert it, or delete it.") from None
