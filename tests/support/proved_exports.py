"""A tiny model that learnt three answers by a LoRA, exported by peft itself, without an engine."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.tiny_models import make_tiny_model
from tinkersmith.export.chat_template import write_chat_template
from tinkersmith.text.templates import choose_template
from tinkersmith.text.tokenizer import load_tokenizer

ANSWERS = {"Say hello.": "Hello!", "3 + 4 = ?": "7", "Name a colour.": "Red"}


@dataclass(frozen=True)
class ProvedExport:
    base: Path
    adapter: Path
    merged: Path
    tuned: Any  # the model in memory
    plain: Any  # its base model
    tokenizer: Any
    chat_template: str
    end: int  # the token that ends answers


def make_proved_export(folder: Path) -> ProvedExport:
    """Train until the three answers are known, end token included, and export both ways."""
    base = make_tiny_model(folder / "base", tied=False)
    tokenizer = AutoTokenizer.from_pretrained(base)
    template = choose_template("instruction", load_tokenizer(base), str(base))
    end = int(tokenizer.convert_tokens_to_ids(template.end))
    targets = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "lm_head",
    ]
    config = LoraConfig(r=16, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    rows = []
    for question, answer in ANSWERS.items():
        prompt = tokenizer.encode(f"Instruction: {question}\nResponse:\n")
        rows.append((prompt, [*tokenizer.encode(answer), end]))
    for _ in range(200):
        loss = torch.zeros(())
        for prompt, answer in rows:
            ids = torch.tensor([[*prompt, *answer]])
            labels = torch.tensor([[*[-100] * len(prompt), *answer]])
            loss = loss + model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    assert loss.item() < 0.02, f"the answers were not learnt: {loss.item()}"
    adapter, merged = folder / "adapter", folder / "merged"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(adapter, save_embedding_layers=False)
        whole = AutoModelForCausalLM.from_pretrained(base)
        from peft import PeftModel

        PeftModel.from_pretrained(whole, adapter).merge_and_unload().save_pretrained(merged)
    for out in (adapter, merged):
        tokenizer.save_pretrained(out)
        (out / "prompt_template.json").write_text(json.dumps(template.to_json()))
        write_chat_template(template, out)
        (out / "README.md").write_text("# Mine\n")
    return ProvedExport(
        base,
        adapter,
        merged,
        model.eval(),
        AutoModelForCausalLM.from_pretrained(base).eval(),
        tokenizer,
        (adapter / "chat_template.jinja").read_text(),
        end,
    )
