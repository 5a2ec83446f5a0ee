"""An export -> the README.md beside it, and the lines that load it."""

from pathlib import Path
from typing import TYPE_CHECKING

from tinkersmith.samples import Sample, Source

if TYPE_CHECKING:
    from tinkersmith.prompts import PromptTemplate


# ---- what to do with it


def _how_to_load(folder: Path, merged: bool, base: str) -> list[str]:
    if merged:
        return [
            "Load it with:",
            "  from transformers import AutoModelForCausalLM",
            f"  model = AutoModelForCausalLM.from_pretrained({str(folder)!r})",
        ]
    return [
        "Load it with:",
        "  from peft import PeftModel; from transformers import AutoModelForCausalLM",
        f"  model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), "
        f"{str(folder)!r})",
    ]


def _card(
    export: Export, base_model: str, base_folder: str, template: "PromptTemplate", has_chat: bool
) -> str:
    from tinkersmith.prompts import unguarded

    base = base_folder if local_model_folder(base_model) else base_model
    sample = Sample(instruction="{instruction}", input="", output="{output}", source=Source("", 1))
    rendered = template.render(sample)
    kind = "A full model" if export.merged else "A LoRA adapter (PEFT)"
    code = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "."  # this folder',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
    ]
    if export.merged:
        code += ["model = AutoModelForCausalLM.from_pretrained(folder)"]
    else:
        code.insert(0, "from peft import PeftModel")
        code += [
            f"base = AutoModelForCausalLM.from_pretrained({base!r})",
            "model = PeftModel.from_pretrained(base, folder)",
        ]
    code += [
        "",
        f"prompt = {unguarded(rendered.prompt)!r}.replace('{{instruction}}', 'your question')",
        'tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)',
        "output = model.generate(**tokens, max_new_tokens=256, do_sample=False)",
        'print(tokenizer.decode(output[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    chat = (
        "The tokenizer's chat template writes the same prompt."
        if has_chat
        else "The tokenizer has no chat template, as none writes this prompt."
    )
    lines = [
        f"# {export.model.name}",
        "",
        f"{kind}, fine-tuned from `{base_model}` with Tinkersmith. Source: `{export.model.state_path}`.",
        "",
        "```python",
        *code,
        "```",
        "",
        f"Prompts must look as in training (`prompt_template.json`, template `{template.name}`). {chat}",
        "An answer ends with "
        f"`{unguarded(rendered.completion.removeprefix('{output}')).strip() or 'its end token'}`.",
        "",
    ]
    return "\n".join(lines)


