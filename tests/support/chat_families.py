"""The chat templates of eight model families, in our own words, from their published rules.

Each is as short as the rules allow. What a model writes after its prompt, which the tests compare
with, is written down apart from the Jinja.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Family:
    """A model family: its chat template, and what its models write."""

    source: str
    end: str
    # What a model writes for a thought and an answer that follow the prompt, with the end token.
    writes: Callable[[str, str], str]
    eos: str = ""  # the tokenizer's end token, if it is another one
    bos: str = ""
    switch: str = ""  # the variable that asks for thoughts
    field: str = ""  # the message's field that has the thought
    # Whether the template never shows a thought, so that only the prompt of use asks for it.
    drops_thoughts: bool = False
    drops_thought_of_call: bool = False  # what stands beside a call is left out
    arguments_as_text: bool = False
    has_tools: bool = True


CHATML = "<|im_start|>"
_DEFINE_LAST = """\
{%- set seen = namespace(last=-1) -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{%- set seen.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
"""
_QWEN_SYSTEM = """\
{%- set first = messages[0].content if messages[0].role == 'system' else '' -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' + (first + '\\n\\n' if first else '') + '# Tools\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools>\\nAnswer calls within <tool_call></tool_call>.<|im_end|>\\n' -}}
{%- elif first -%}
{{- '<|im_start|>system\\n' + first + '<|im_end|>\\n' -}}
{%- endif -%}
"""
_QWEN_TOOL = """\
{%- if m.role == 'tool' -%}
{%- if not loop.previtem or loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' -}}
{%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- endif -%}
"""
_QWEN_CALL = """\
{%- for call in m.tool_calls or [] -%}
{%- set f = call.function -%}
{{- '\\n' if text or not loop.first -}}
{{- '<tool_call>\\n{"name": "' + f.name + '", "arguments": ' -}}
{{- (f.arguments if f.arguments is string else f.arguments | tojson) + '}\\n</tool_call>' -}}
{%- endfor -%}
"""
_SPLIT_THOUGHT = """\
{%- set text = m.content or '' -%}
{%- set thought = '' -%}
{%- if m.reasoning_content is string -%}{%- set thought = m.reasoning_content -%}
{%- elif '</think>' in text -%}
{%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
"""

# Thoughts of answers before the last question are dropped, and the last answer has one, be it
# empty. The prompt names no thought, or an empty one.
QWEN3 = (
    _DEFINE_LAST
    + _QWEN_SYSTEM
    + "{%- for m in messages -%}"
    + "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}"
    + "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}{%- endif -%}"
    + _QWEN_TOOL
    + "{%- if m.role == 'assistant' -%}"
    + _SPLIT_THOUGHT
    + "{{- '<|im_start|>assistant\\n' -}}"
    + "{%- if loop.index0 > seen.last and (loop.last or thought) -%}"
    + "{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' -}}"
    + "{%- set text = text.lstrip('\\n') -%}{%- endif -%}"
    + "{{- text -}}"
    + _QWEN_CALL
    + "{{- '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
    + "{%- if enable_thinking is defined and not enable_thinking -%}"
    + "{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}{%- endif -%}"
)
# Answers after the last question show a thought, be it empty, and the prompt opens one.
QWEN3_5 = (
    _DEFINE_LAST
    + "{%- macro said(content) -%}{{- (content or '') | trim -}}{%- endmacro -%}"
    + _QWEN_SYSTEM
    + "{%- for m in messages -%}{%- if m.role == 'user' -%}"
    + "{{- '<|im_start|>user\\n' + said(m.content) + '<|im_end|>\\n' -}}{%- endif -%}"
    + _QWEN_TOOL
    + "{%- if m.role == 'assistant' -%}"
    + _SPLIT_THOUGHT
    + "{%- set text = said(text) -%}"
    + "{{- '<|im_start|>assistant\\n' -}}{%- if loop.index0 > seen.last -%}"
    + "{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}{%- endif -%}{{- text -}}"
    + "{%- for call in m.tool_calls or [] -%}"
    + "{{- ('\\n\\n' if loop.first and text else '' if loop.first else '\\n') -}}"
    + "{{- '<tool_call>\\n<function=' + call.function.name + '>\\n' -}}"
    + "{%- for name, value in call.function.arguments | items -%}"
    + "{{- '<parameter=' + name + '>\\n' -}}"
    + "{{- (value | tojson if value is mapping else value | string) + '\\n</parameter>\\n' -}}"
    + "{%- endfor -%}{{- '</function>\\n</tool_call>' -}}{%- endfor -%}"
    + "{{- '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
    + "{%- if enable_thinking is defined and enable_thinking is false -%}"
    + "{{- '<think>\\n\\n</think>\\n\\n' -}}{%- else -%}{{- '<think>\\n' -}}{%- endif -%}"
    + "{%- endif -%}"
)
# The prompt opens a thought, or has an empty one on one line; so have earlier answers.
NEMOTRON_3 = (
    _DEFINE_LAST
    + "{%- set thinks = enable_thinking if enable_thinking is defined else true -%}"
    + "{{- '<|im_start|>system\\n' -}}"
    + "{%- if messages[0].role == 'system' -%}{{- messages[0].content -}}{%- endif -%}"
    + "{%- if tools -%}{{- '\\n\\n' if messages[0].role == 'system' and messages[0].content -}}"
    + "{{- '<tools>' -}}{%- for tool in tools -%}"
    + "{{- '\\n<function>\\n<name>' + tool.function.name + '</name>\\n</function>' -}}"
    + "{%- endfor -%}{{- '\\n</tools>' -}}{%- endif -%}{{- '<|im_end|>\\n' -}}"
    + "{%- for m in messages -%}{%- if m.role == 'user' -%}"
    + "{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' -}}"
    + "{%- elif m.role == 'tool' -%}"
    + "{%- if loop.previtem.role != 'tool' -%}{{- '<|im_start|>user\\n' -}}{%- endif -%}"
    + "{{- '<tool_response>\\n' + m.content + '\\n</tool_response>\\n' -}}"
    + "{%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}"
    + "{%- elif m.role == 'assistant' -%}"
    + "{%- set text = m.content or '' -%}"
    + "{%- if m.reasoning_content -%}"
    + "{%- set text = '<think>\\n' + m.reasoning_content + '\\n</think>\\n' + text -%}"
    + "{%- elif '</think>' not in text -%}{%- set text = '<think></think>' + text -%}{%- endif -%}"
    + "{%- if loop.index0 < seen.last -%}"
    + "{%- set text = '<think></think>' + text.split('</think>')[-1] -%}{%- endif -%}"
    + "{{- '<|im_start|>assistant\\n' + text | trim -}}"
    + "{%- if m.tool_calls -%}{{- '\\n' -}}{%- for call in m.tool_calls -%}"
    + "{{- '<tool_call>\\n<function=' + call.function.name + '>\\n' -}}"
    + "{%- for name, value in call.function.arguments | items -%}"
    + "{{- '<parameter=' + name + '>\\n' + value | string + '\\n</parameter>\\n' -}}"
    + "{%- endfor -%}{{- '</function>\\n</tool_call>\\n' -}}{%- endfor -%}{%- endif -%}"
    + "{{- '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
    + "{{- '<think>\\n' if thinks else '<think></think>' -}}{%- endif -%}"
)
# Answers never show a thought, not even the last one; a closing tag stands before each.
DEEPSEEK_V3_1 = (
    "{%- if thinking is not defined -%}{%- set thinking = false -%}{%- endif -%}"
    + "{%- set state = namespace(asked=false, tool=false) -%}{{- bos_token -}}"
    + "{%- for m in messages -%}{%- if m.role == 'system' -%}"
    + "{{- m.content -}}{%- endif -%}{%- endfor -%}"
    + "{%- for m in messages -%}{%- if m.role == 'user' -%}"
    + "{%- set state.asked = true -%}{%- set state.tool = false -%}"
    + "{{- '<｜User｜>' + m.content -}}"
    + "{%- elif m.role == 'assistant' -%}"
    + "{%- if state.asked -%}{{- '<｜Assistant｜></think>' -}}{%- endif -%}"
    + "{%- set state.asked = false -%}{%- set state.tool = false -%}"
    + "{%- set text = m.content or '' -%}"
    + "{%- if '</think>' in text -%}{%- set text = text.split('</think>', 1)[1] -%}{%- endif -%}"
    + "{{- text -}}"
    + "{%- if m.tool_calls -%}{{- '<｜tool▁calls▁begin｜>' -}}{%- for call in m.tool_calls -%}"
    + "{{- '<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' -}}"
    + "{{- call.function.arguments + '<｜tool▁call▁end｜>' -}}{%- endfor -%}"
    + "{{- '<｜tool▁calls▁end｜>' -}}{%- endif -%}"
    + "{{- '<｜end▁of▁sentence｜>' -}}"
    + "{%- elif m.role == 'tool' -%}"
    + "{%- set state.asked = false -%}{%- set state.tool = true -%}"
    + "{{- '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' -}}"
    + "{%- endif -%}{%- endfor -%}"
    + "{%- if add_generation_prompt and state.asked and not state.tool -%}"
    + "{{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') -}}{%- endif -%}"
)
# Thoughts and answers are messages in channels of their own. Only the last answer shows its
# thought, and it ends with another token.
GPT_OSS = (
    "{{- '<|start|>system<|message|>You are ChatGPT, a large language model.\\n' -}}"
    + "{{- 'Current date: ' + strftime_now('%Y-%m-%d') + '\\n\\nReasoning: medium<|end|>' -}}"
    + "{%- set first = messages[0].content if messages[0].role == 'system' else '' -%}"
    + "{%- if first or tools -%}{{- '<|start|>developer<|message|>' -}}"
    + "{%- if first -%}{{- '# Instructions\\n\\n' + first + '\\n\\n' -}}{%- endif -%}"
    + "{%- for tool in tools or [] -%}"
    + "{{- 'type ' + tool.function.name + ' = any;\\n' -}}{%- endfor -%}"
    + "{{- '<|end|>' -}}{%- endif -%}"
    + "{%- set called = namespace(name='', later=false) -%}"
    + "{%- for m in messages -%}{%- if m.role == 'user' -%}"
    + "{{- '<|start|>user<|message|>' + m.content + '<|end|>' -}}"
    + "{%- elif m.role == 'tool' -%}"
    + "{{- '<|start|>functions.' + called.name + ' to=assistant<|channel|>commentary<|message|>'"
    + " -}}"
    + "{{- (m.content | tojson) + '<|end|>' -}}"
    + "{%- elif 'tool_calls' in m -%}"
    + "{%- set called.later = false -%}{%- for n in messages[loop.index:] -%}"
    + "{%- if n.role == 'assistant' and 'tool_calls' not in n -%}"
    + "{%- set called.later = true -%}{%- endif -%}"
    + "{%- endfor -%}"
    + "{%- if m.content and m.thinking -%}"
    + "{{- raise_exception('content and thinking') -}}{%- endif -%}"
    + "{%- set thought = m.content or m.thinking -%}"
    + "{%- if thought and not called.later -%}"
    + "{{- '<|start|>assistant<|channel|>analysis<|message|>' + thought + '<|end|>' -}}"
    + "{%- endif -%}"
    + "{%- set f = m.tool_calls[0].function -%}{%- set called.name = f.name -%}"
    + "{{- '<|start|>assistant to=functions.' + f.name"
    + " + '<|channel|>commentary json<|message|>' -}}"
    + "{{- (f.arguments | tojson) + '<|call|>' -}}"
    + "{%- elif m.role == 'assistant' -%}"
    + "{%- set at_end = loop.last and not add_generation_prompt -%}"
    + "{%- if at_end and 'thinking' in m -%}"
    + "{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' -}}"
    + "{%- endif -%}"
    + "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content -}}"
    + "{{- '<|return|>' if at_end else '<|end|>' -}}"
    + "{%- endif -%}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"
)
# A system message with dates is always there; functions stand in the first question.
LLAMA_3 = (
    "{{- bos_token -}}"
    + "{%- set first = messages[0].content | trim if messages[0].role == 'system' else '' -%}"
    + "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting"
    + " Knowledge Date: December 2023\\n' -}}"
    + "{{- 'Today Date: ' + strftime_now('%d %b %Y') + '\\n\\n' + first + '<|eot_id|>' -}}"
    + "{%- set asked = namespace(first=true) -%}"
    + "{%- for m in messages -%}{%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}"
    + "{%- set role = 'ipython' if m.role == 'tool' else m.role -%}"
    + "{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' -}}"
    + "{%- if m.role == 'user' and asked.first and tools -%}"
    + "{%- for tool in tools -%}{{- (tool | tojson(indent=4)) + '\\n\\n' -}}"
    + "{%- endfor -%}{%- endif -%}"
    + "{%- if m.role == 'user' -%}{%- set asked.first = false -%}{%- endif -%}"
    + "{%- if 'tool_calls' in m -%}"
    + "{%- if m.tool_calls | length != 1 -%}"
    + "{{- raise_exception('only single calls') -}}{%- endif -%}"
    + "{%- set f = m.tool_calls[0].function -%}"
    + "{{- '{\"name\": \"' + f.name + '\", \"parameters\": ' + (f.arguments | tojson) + '}' -}}"
    + "{%- elif m.role == 'tool' -%}{{- m.content | tojson -}}"
    + "{%- else -%}{{- m.content | trim -}}{%- endif -%}{{- '<|eot_id|>' -}}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}"
    + "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)
# No system message: its text stands in the first question. Nothing is known of tools.
GEMMA_3 = (
    "{{- bos_token -}}"
    + "{%- set first = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -%}"
    + "{%- set turns = messages[1:] if messages[0].role == 'system' else messages -%}"
    + "{%- for m in turns -%}"
    + "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
    + "{{- raise_exception('Conversation roles must alternate') -}}{%- endif -%}"
    + "{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' -}}"
    + "{{- (first if loop.first else '') + m.content | trim + '<end_of_turn>\\n' -}}"
    + "{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
)
# A system text of its own, and no thoughts.
QWEN2_5 = (
    "{%- set first = messages[0].content if messages[0].role == 'system' else '' -%}"
    + "{%- set first = first or 'You are a helper.' -%}"
    + "{{- '<|im_start|>system\\n' + first -}}"
    + "{%- if tools -%}{%- for tool in tools -%}"
    + "{{- '\\n' + (tool | tojson) -}}{%- endfor -%}{%- endif -%}"
    + "{{- '<|im_end|>\\n' -}}"
    + "{%- for m in messages -%}{%- if m.role == 'user' -%}"
    + "{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' -}}{%- endif -%}"
    + _QWEN_TOOL
    + "{%- if m.role == 'assistant' -%}{%- set text = m.content -%}"
    + "{{- '<|im_start|>assistant\\n' + text -}}"
    + _QWEN_CALL
    + "{{- '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def _on_lines(close: str) -> Callable[[str, str], str]:
    return lambda thought, answer: (f"<think>\n{thought}{close}" if thought else "") + answer


def _in_prompt(close: str) -> Callable[[str, str], str]:
    return lambda thought, answer: (thought + close if thought else "") + answer


def _in_channels(thought: str, answer: str) -> str:
    final = f"<|channel|>final<|message|>{answer}"
    if not thought:
        return final
    return f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant{final}"


FAMILIES = {
    "qwen2_5": Family(QWEN2_5, "<|im_end|>", _on_lines("\n</think>\n\n")),
    "qwen3": Family(
        QWEN3,
        "<|im_end|>",
        _on_lines("\n</think>\n\n"),
        switch="enable_thinking",
        field="reasoning_content",
    ),
    "qwen3_5": Family(
        QWEN3_5,
        "<|im_end|>",
        _in_prompt("\n</think>\n\n"),
        switch="enable_thinking",
        field="reasoning_content",
    ),
    "nemotron3": Family(
        NEMOTRON_3,
        "<|im_end|>",
        _in_prompt("\n</think>\n"),
        switch="enable_thinking",
        field="reasoning_content",
    ),
    "deepseek_v3_1": Family(
        DEEPSEEK_V3_1,
        "<｜end▁of▁sentence｜>",
        _in_prompt("</think>"),
        bos="<｜begin▁of▁sentence｜>",
        switch="thinking",
        drops_thoughts=True,
        arguments_as_text=True,
        drops_thought_of_call=True,
    ),
    "gptoss": Family(GPT_OSS, "<|return|>", _in_channels, bos="<|startoftext|>", field="thinking"),
    "llama3_2": Family(
        LLAMA_3,
        "<|eot_id|>",
        _on_lines("\n</think>\n\n"),
        bos="<|begin_of_text|>",
        drops_thought_of_call=True,
    ),
    "gemma3": Family(
        GEMMA_3,
        "<end_of_turn>",
        _on_lines("\n</think>\n\n"),
        eos="<eos>",
        bos="<bos>",
        has_tools=False,
    ),
}
# Calls stand in a list behind a special token. The end token is the tokenizer's own.
MISTRAL = Family(
    "{{- bos_token -}}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    + "{%- if tools -%}{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' -}}"
    + "{%- endif -%}{{- '[INST] ' + m.content + '[/INST]' -}}"
    + "{%- elif m.role == 'tool' -%}"
    + "{{- '[TOOL_RESULTS] ' + (m.content | tojson) + '[/TOOL_RESULTS]' -}}"
    + "{%- elif m.tool_calls -%}{{- '[TOOL_CALLS] [' -}}{%- for call in m.tool_calls -%}"
    + "{{- ', ' if not loop.first -}}"
    + "{{- (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' -}}"
    + "{%- endfor -%}{{- ']' + eos_token -}}"
    + "{%- else -%}{{- ' ' + m.content + eos_token -}}{%- endif -%}{%- endfor -%}",
    "</s>",
    _on_lines("\n</think>\n\n"),
    bos="<s>",
)
SPECIAL = [
    *("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"),
    *("[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>", "<eos>"),
    *("<start_of_turn>", "<end_of_turn>", "<|begin_of_text|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "<|startoftext|>", "<|start|>", "<|end|>", "<|message|>"),
    *("<|channel|>", "<|return|>", "<|call|>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
]
ORDINARY = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *("<｜User｜>", "<｜Assistant｜>", "<｜tool▁sep｜>", "<｜tool▁calls▁begin｜>"),
    *("<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
    *("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
]


def make_family_tokenizer(folder: Path, family: Family) -> PreTrainedTokenizerFast:
    """A small byte-level BPE with merges and the family's control tokens, saved in `folder`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    text = "the answer to the question is that of the assistant, user and system\n\n" * 50
    backend.train_from_iterator([text + QWEN3], trainer)
    backend.add_tokens([AddedToken(token, normalized=False) for token in ORDINARY])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=family.eos or family.end,
        bos_token=family.bos or None,
        chat_template=family.source,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
