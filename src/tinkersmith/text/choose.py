"""Settings, a tokenizer and the data's thoughts -> the prompt template, and why it is that one."""

import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.errors import UserError
from tinkersmith.plurals import counted
from tinkersmith.prompts.probes import TemplateProbe
from tinkersmith.text.chat_template import ChatTemplate
from tinkersmith.text.text_template import (
    ALPACA_FORMAT,
    ALPACA_FORMAT_WITHOUT_INPUT,
    INSTRUCTION_FORMAT,
    TextTemplate,
    check_template_setting,
)
from tinkersmith.text.thoughts import ThoughtCounts

if TYPE_CHECKING:
    from tinkersmith.prompts.text_tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Decision:
    """What PROMPT_TEMPLATE means for a model."""

    setting: str  # "chat", "instruction", "alpaca" or a format string
    reason: str  # a sentence's end


def decide(setting: str, tokenizer: "TextTokenizer", base_model: str) -> Decision:
    """The template that PROMPT_TEMPLATE selects. "auto" asks what the model says of itself.

    A base model may have a chat template, but never learned the token that ends its answers. So
    the ends that its generation_config.json names decide; then the tokenizer's end token; then the
    model's name.

    Raises:
        UserError: the setting is wrong.
    """
    check_template_setting(setting)
    if setting != "auto":
        return Decision(setting, "as PROMPT_TEMPLATE says")
    if base_model in BUNDLED_MODELS:
        return Decision("instruction", "the bundled model knows no conversations")
    if not tokenizer.chat_template:
        return Decision("instruction", "the model has no chat template")
    end = _end_of_answers(tokenizer)
    ends = [tokenizer.special_tokens.get(end)] if end else []
    shared = end == tokenizer.eos_text and bool(_END_OF_TEXT.search(end))
    if end and tokenizer.generation_ends:
        if ends[0] not in tokenizer.generation_ends:
            return Decision(
                "instruction",
                f"a base model: its generation_config.json does not end a text at {end}, as its "
                "chat template does",
            )
        if not shared or len(tokenizer.generation_ends) > 1:
            return Decision("chat", f"its generation_config.json ends answers at {end}")
    base_name = _sounds_like_base(base_model)
    is_hub_name = not Path(base_model).expanduser().is_dir()
    if end and end == tokenizer.eos_text and not shared and not (base_name and is_hub_name):
        return Decision("chat", f"its tokenizer ends texts at {end}, as its chat template does")
    if base_name:
        return Decision("instruction", "its name is that of a base model")
    return Decision("chat", "it has a chat template, and its name is not that of a base model")


# End tokens of a text as such: a base model has them as well.
_END_OF_TEXT = re.compile(r"^</s>$|end.?of.?(text|sentence|document)|endoftext|^<\|?eos\|?>$", re.I)


def _end_of_answers(tokenizer: "TextTokenizer") -> str:
    """The token with which the chat template ends an answer; "" if it has none or fails."""
    try:
        end = _probe_of(tokenizer, datetime.date.today()).answer_form().end
    except UserError:
        return ""
    special = [token for token in tokenizer.special_tokens if end.endswith(token)]
    return max(special, key=len, default="")


_CHAT_WORD = re.compile(
    r"(^|[-_. ])(instruct|chat|it|sft|dpo|rlhf|thinking|reasoning|reasoner|distill|assistant|"
    r"hermes|zephyr|tulu|qwq|r1|r1zero|oss)($|[-_. \d])",
    re.IGNORECASE,
)
_BASE_WORD = re.compile(r"(^|[-_. ])(base|pt|pretrain|pretrained|foundation)($|[-_. ])", re.I)
_PYTORCH = re.compile(r"ernie-(?!.*base).*-pt$", re.IGNORECASE)  # its "PT" names the framework
# Families whose plain names are those of base models; their chat models say so in the name.
_PLAIN_BASE = re.compile(
    r"""^(
        qwen(1\.5|2|2\.5)(-(math|coder|moe|audio))?-a?[\d.]+b.*
      | qwen-[\d.]+b
      | codeqwen1\.5-[\d.]+b
      | (meta-|code)?llama-?(2|3|3\.1|3\.2|3\.3|4)?(-(scout|maverick))?-[\d.]+b.*
      | (open_?llama|tinyllama).*
      | (mistral|mixtral)-([\d]+x)?[\d.]+b-v0\.\d
      | (mistral-nemo|ministral|mistral-small).*-base.*
      | yi(-1\.5|-coder)?-[\d.]+b(-\d+k)?
      | (code)?gemma-?[123]?n?-?(e?[\d.]+)(b|m)
      | phi-?(1|1_5|1\.5|2)
      | (amd-)?olmoe?(-[123])?(-\d{4})?-[\d.]+b(-\d+b|-\d{4}|-twin-2t)*(-hf)?
      | internlm2?(_5)?-(math-)?[\d.]+b | internlm2?(_5)?-[\d_.]+b
      | baichuan2?-[\d.]+b
      | (chat)?glm-?4-9b(-hf)?
      | deepseek-v2(-lite)?
      | deepseek-(llm|moe|coder|math)-[\d.]+b
      | falcon-?[23]?-?(h1-|mamba-)?[\d.]+b
      | smollm2?-[\d.]+(m|b)
      | (granite|starcoder2?|stablelm-2|pythia|gpt-neox|gpt-j|bloom|opt|mpt|rwkv)-[\d._]+(m|b)\d?
      | gpt2(-.*)?
      | mamba.*
    )$""",
    re.IGNORECASE | re.VERBOSE,
)


def _sounds_like_base(base_model: str) -> bool:
    name = base_model.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if _BASE_WORD.search(name) and not _PYTORCH.match(name):
        return True
    return not _CHAT_WORD.search(name) and bool(_PLAIN_BASE.match(name))


def choose_template(
    setting: str,
    tokenizer: "TextTokenizer",
    base_model: str,
    today: datetime.date | None = None,
    thinking: str = "auto",
    thoughts: ThoughtCounts | None = None,
) -> TextTemplate | ChatTemplate:
    """The template that PROMPT_TEMPLATE selects for this model.

    Args:
        today: the date that the chat template sees; the current day if None.
        thinking: a value of THINKING.
        thoughts: those of the data to train on; None where no data is known.

    Raises:
        UserError: a setting is wrong, does not fit the data, or has no effect on it; or the model
            has no chat template that works.
    """
    wanted = decide(setting, tokenizer, base_model).setting
    _check_thinking(thinking, thoughts)
    if wanted == "chat":
        return _chat_template(
            tokenizer, base_model, today or datetime.date.today(), thinking, thoughts
        )
    name, with_input, without_input = {
        "instruction": ("instruction", INSTRUCTION_FORMAT, INSTRUCTION_FORMAT),
        "alpaca": ("alpaca", ALPACA_FORMAT, ALPACA_FORMAT_WITHOUT_INPUT),
    }.get(wanted, ("own", wanted, wanted))
    return TextTemplate(
        name=name,
        format=with_input,
        format_without_input=without_input,
        end=tokenizer.eos_text,
        begin=tokenizer.begin_text,
        special_tokens=tuple(tokenizer.special_tokens),
        thinking=thinking,
    )


def template_lines(
    template: TextTemplate | ChatTemplate,
    decision: Decision,
    thoughts: ThoughtCounts,
) -> list[str]:
    """What a run says of its template at its start: name, reason, thoughts, and a system text."""
    lines = [f"Prompt template: {template.name} ({decision.reason})"]
    lines += [f"  {line}" for line in _thinking_lines(template, thoughts)]
    if isinstance(template, ChatTemplate) and template.form.own_system:
        lines.append("  The chat template adds a system text of its own:")
        lines += _quoted(template.form.own_system, 6)
    return lines


def _check_thinking(thinking: str, thoughts: ThoughtCounts | None) -> None:
    if thoughts is None:
        return
    if thinking == "off" and thoughts.with_thoughts:
        others = thoughts.with_thoughts - 1
        more = f", and so {'does' if others == 1 else 'do'} {counted(others, 'other sample')}"
        raise UserError(
            f'THINKING is "off", but {thoughts.first} has a thought{more if others else ""}. Set '
            'THINKING to "keep" or "strip", or remove the thoughts.'
        )
    if thinking == "keep" and thoughts.samples and not thoughts.with_thoughts:
        raise UserError(
            'THINKING is "keep", but not one sample has a thought. Set it to "auto", or give the '
            "answers thoughts."
        )


def _thinking_lines(template: TextTemplate | ChatTemplate, thoughts: ThoughtCounts) -> list[str]:
    number, samples = thoughts.with_thoughts, thoughts.samples
    having = f"{number:,} of {counted(samples, 'sample')}"
    lines: list[str] = []
    if template.thinking == "strip":
        lines.append(
            f'Thoughts: removed from {having} (THINKING is "strip").'
            if number
            else 'Thoughts: THINKING is "strip", but not one sample has a thought.'
        )
    elif number:
        lines.append(f"Thoughts: in {having}; they are trained on.")
    if not isinstance(template, ChatTemplate) or template.form.carrier == "text":
        if number and template.keeps_thoughts:
            lines.append("The template knows no thoughts; they are written as text: <think>.")
        if template.thinking in ("keep", "off"):
            lines.append(
                f'THINKING is "{template.thinking}", and writes what "auto" writes: the template '
                "knows no thoughts."
            )
        return lines + _earlier_lines(template, thoughts)
    lines += _earlier_lines(template, thoughts)
    if template.thinks is None:
        return lines
    other = samples - number if template.keeps_thoughts else samples
    if other and template.thinking == "keep":
        lines.append(f"{counted(other, 'sample')} without a thought: trained to leave it empty.")
    elif other:
        lines.append(
            f"{counted(other, 'sample')} without a thought: written in the template's form "
            "without thoughts."
        )
    mode = "with thoughts" if template.thinks else "without thoughts"
    lines.append(f"Evaluation, samples and export ask for answers {mode}.")
    return lines


def _earlier_lines(template: TextTemplate | ChatTemplate, thoughts: ThoughtCounts) -> list[str]:
    """What is said of thoughts that a template drops from a conversation trained as one text."""
    if not (thoughts.earlier and template.keeps_thoughts and isinstance(template, ChatTemplate)):
        return []
    if not template.drops_earlier_thoughts:
        return []
    return [
        f"{counted(thoughts.earlier, 'sample')} with a thought before a later question: the "
        'template leaves it out there, and TRAIN_ON "all_text" does not train it; "all" does.'
    ]


def _quoted(text: str, most: int) -> list[str]:
    """The first and last lines of a text, indented; long lines are cut."""
    lines = text.split("\n")
    if len(lines) > most:
        half = most // 2
        left_out = f"... ({len(lines) - most:,} lines) ..."
        lines = [*lines[: most - half], left_out, *lines[-half:]]
    return [
        "    | " + (line if len(line) <= 160 else f"{line[:100]} ... {line[-40:]}")
        for line in lines
    ]


def _probe_of(tokenizer: "TextTokenizer", today: datetime.date) -> TemplateProbe:
    return TemplateProbe(
        tokenizer.chat_template or "",
        today.isoformat(),
        tokenizer.named_tokens,
        tuple(tokenizer.special_tokens),
        tokenizer.eos_text,
    )


def _chat_template(
    tokenizer: "TextTokenizer",
    base_model: str,
    today: datetime.date,
    thinking: str,
    thoughts: ThoughtCounts | None,
) -> ChatTemplate:
    if not tokenizer.chat_template:
        raise UserError(
            f'PROMPT_TEMPLATE is "chat", but {base_model} has no chat template. Use "instruction".'
        )
    try:
        carrier = _probe_of(tokenizer, today).answer_form().carrier
    except UserError as error:
        raise UserError(f"{base_model}: {error}") from None
    return ChatTemplate(
        name="chat",
        chat_template=tokenizer.chat_template,
        end_of_text=tokenizer.eos_text,
        begin=tokenizer.begin_text,
        named_tokens=dict(tokenizer.named_tokens),
        special_tokens=tuple(tokenizer.special_tokens),
        control_tokens=tuple(tokenizer.control_tokens),
        date=today.isoformat(),
        thinking=thinking,
        thinks=None if carrier == "text" else _thinks(thinking, thoughts),
    )


def _thinks(thinking: str, thoughts: ThoughtCounts | None) -> bool | None:
    """Whether use asks for a thought: as most samples of the data do; None if there is no data."""
    if thinking == "keep":
        return True
    if thinking in ("strip", "off"):
        return False
    if thoughts is None or not thoughts.samples:
        return None
    return thoughts.with_thoughts * 2 >= thoughts.samples
