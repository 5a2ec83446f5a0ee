"""Requests to copy: how a server of an exported model is asked as the model was trained."""

import json

from tinkersmith.data.samples import Source, alpaca_sample
from tinkersmith.prompts.guards import unguarded
from tinkersmith.text.templates import PromptTemplate

_QUESTION, _INPUT = "\ue011", "\ue012"  # of Unicode's private use: no template has them
EXAMPLE = ("Solve the equation.", "2x + 3 = 11")


def text_before_input(template: PromptTemplate) -> str | None:
    """What stands between question and input in a trained prompt.

    A message of question, this text and input then gives the trained prompt on every server. None
    where it does not: the prompt differs in other places as well.
    """
    asked = _prompt(template, _QUESTION, _INPUT)
    _, question, rest = asked.partition(_QUESTION)
    between, given, _ = rest.partition(_INPUT)
    if not question or not given:
        return None
    return between if _prompt(template, f"{_QUESTION}{between}{_INPUT}", "") == asked else None


def example_message(template: PromptTemplate) -> dict[str, str]:
    """A message of the user with a question and its input, as JSON has it."""
    between = text_before_input(template)
    question, given = EXAMPLE
    return {
        "role": "user",
        "content": question if between is None else f"{question}{between}{given}",
    }


def request_body(template: PromptTemplate, model: str) -> dict[str, object]:
    """The body of a chat request with an input, for vLLM, llama-server and `tinkersmith serve`."""
    body: dict[str, object] = {
        "model": model,
        "messages": [example_message(template)],
        "temperature": 0,
        "max_tokens": 256,
    }
    if text_before_input(template) is None:
        body["chat_template_kwargs"] = {"input": EXAMPLE[1]}
    return body


def curl_lines(template: PromptTemplate, model: str, url: str) -> list[str]:
    """A shell command that asks a question with an input."""
    body = json.dumps(request_body(template, model), ensure_ascii=False, indent=2)
    quoted = body.replace("'", "'\\''")
    return [
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{quoted}'",
    ]


def python_lines(template: PromptTemplate, model: str, url: str) -> list[str]:
    """Python that asks the same question through the openai package."""
    lines = [
        "from openai import OpenAI",
        "",
        f'client = OpenAI(base_url="{url}/v1", api_key="none")',
        "answer = client.chat.completions.create(",
        f"    model={model!r},",
        f"    messages=[{example_message(template)!r}],",
        "    temperature=0,",
        "    max_tokens=256,",
    ]
    if text_before_input(template) is None:
        lines.append(f"    extra_body={{'chat_template_kwargs': {{'input': {EXAMPLE[1]!r}}}}},")
    return [*lines, ")", "print(answer.choices[0].message.content)"]


def about_inputs(template: PromptTemplate) -> str:
    """A sentence about where the input of a question belongs."""
    between = text_before_input(template)
    if between is not None:
        return (
            f"A question that has an input is one message: the question, {json.dumps(between)}, "
            "and the input. The prompt is then the trained one on every server."
        )
    return (
        "A question that has an input is asked with `chat_template_kwargs`: the trained prompt "
        "differs in more places than one."
    )


def _prompt(template: PromptTemplate, question: str, given: str) -> str:
    return unguarded(template.render_prompt(alpaca_sample(question, given, "x", Source("", 1))))
