"""The README.md of an exported folder, and the Python lines that load the export."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinkersmith.data.samples import Sample, Source, alpaca_sample

if TYPE_CHECKING:
    from tinkersmith.text.templates import PromptTemplate


def loading_lines(folder: Path | str, base: str | None) -> list[str]:
    """Python that loads the export; `base` is the base model's folder or name, None if merged."""
    if base is None:
        return [
            "from transformers import AutoModelForCausalLM",
            f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r})",
        ]
    return [
        "from peft import PeftModel; from transformers import AutoModelForCausalLM",
        f"base = AutoModelForCausalLM.from_pretrained({base!r})",
        f"model = PeftModel.from_pretrained(base, {str(folder)!r})",
    ]


def _about_thoughts(template: "PromptTemplate") -> list[str]:
    thinks = getattr(template, "thinks", None)
    if thinks is None:
        return []
    return [f"The prompt asks for answers {'with' if thinks else 'without'} thoughts (`<think>`)."]


def _prompt_forms(
    template: "PromptTemplate", inputs: frozenset[bool]
) -> list[tuple[str, dict[str, str]]]:
    """The prompts as they were trained, and what stands for the places in them."""
    from tinkersmith.prompts.guards import unguarded

    asked = {"instruction": "Your question"}
    plain = unguarded(template.render_prompt(_placeholders(""))), asked
    with_input = unguarded(template.render_prompt(_placeholders("{input}")))
    both = with_input, {**asked, "input": "What it is about"}
    if not inputs:  # not known
        return [plain, both] if template.name != "chat" else [plain]
    return [form for form, trained in ((both, True in inputs), (plain, False in inputs)) if trained]


def _placeholders(input: str) -> Sample:
    return alpaca_sample("{instruction}", input, "{output}", Source("", 1))


def _form_lines(prompt: str, filled: Mapping[str, str]) -> list[str]:
    kind = "with an input" if "input" in filled else "without an input"
    return ["", f"A prompt {kind}, as a Python string:", "", "```python", repr(prompt), "```"]


def model_card(
    name: str,
    source: str,  # the tinker:// path
    base_model: str,
    base: str | None,  # as in `loading_lines`
    template: "PromptTemplate",
    has_chat_template: bool,
    inputs: frozenset[bool],  # whether trained samples had an input: both, one, or none known
    serving: Sequence[str] = (),  # the lines about servers
) -> str:
    """The Markdown of the README.md, with code that asks the model a question."""
    forms = _prompt_forms(template, inputs)
    prompt, filled = forms[0]
    end = template.render(_placeholders("")).completion.rpartition("{output}")[2].strip()
    kind = "A full model" if base is None else "A LoRA adapter (PEFT)"
    lines = [
        f"# {name}",
        "",
        f"{kind}, fine-tuned from `{base_model}` with Tinkersmith.",
        f"Source: `{source}`.",
        "",
        "```python",
        *loading_lines(".", base),
        "",
        "from transformers import AutoTokenizer",
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        f"prompt = {prompt!r}",
        *[f"prompt = prompt.replace('{{{name}}}', {value!r})" for name, value in filled.items()],
        'tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)',
        "output = model.generate(**tokens, max_new_tokens=256, do_sample=False)",
        "answer = output[0, tokens['input_ids'].shape[1] :]",
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
        "```",
        "",
        f"The model was trained on prompts of {'these forms' if len(forms) > 1 else 'this form'} "
        f"only (template `{template.name}`; see",
        f"`prompt_template.json`). Its answers end with `{end or 'its end token'}`.",
        *[line for prompt, filled in forms for line in _form_lines(prompt, filled)],
        "",
        "The tokenizer's chat template writes the same prompt."
        if has_chat_template
        else "The tokenizer has no chat template: none can write this prompt.",
        *_about_thoughts(template),
        "",
        *serving,
    ]
    return "\n".join(lines)
