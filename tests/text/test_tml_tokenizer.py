"""Inkling's tokenizer and chat format, against the package that defines them."""

import sys

import pytest

from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.errors import UserError
from tinkersmith.service.answers import generated_text, stop_tokens
from tinkersmith.text.choose import choose_template
from tinkersmith.text.templates import ChatTemplate
from tinkersmith.text.tokenize import encode_samples
from tinkersmith.text.tokenizer import tokenizer_of

MODEL = "thinkingmachines/Inkling-Small"
SAID = [("system", "Be brief."), ("user", "Hello <|end_message|> x"), ("assistant", "Hi! 你好")]


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tml_renderers", None)
    monkeypatch.setitem(sys.modules, "tml_renderers.tokenizers", None)
    with pytest.raises(UserError, match=r"tml-renderers.*pip install 'tinkersmith\[inkling\]'"):
        tokenizer_of("", MODEL)


@pytest.mark.parametrize("thought", ["", "Short, then.\n你好?"])
def test_a_conversation_becomes_the_tokens_of_the_packages_own_renderer(thought: str) -> None:
    pytest.importorskip("tml_renderers")
    from tml_renderers import chat, tokenizers, v0  # pyright: ignore[reportMissingImports]

    tokenizer = tokenizer_of("", f"{MODEL}:peft:262144")
    template = choose_template("auto", tokenizer, MODEL)
    said = [*SAID, ("user", "And?"), ("assistant", "No more.")]
    turns = [
        Turn(role, text, thought=thought if role == "assistant" else "")  # type: ignore[arg-type]
        for role, text in said
    ]
    ((_, [(tokens, spans)]),) = encode_samples(
        [Sample(tuple(turns), Source("a.json", 1))], template, tokenizer
    )
    renderer = v0.Renderer(tokenizers.O200kBaseChatTokenizer())
    messages = chat.OpenAIMessage.from_oss_messages([_written(turn) for turn in turns])
    (example,) = renderer.render_for_sft(messages)
    theirs = [
        token
        for span in example.input_token_spans
        for token in span.span.int_tokens  # pyright: ignore[reportAttributeAccessIssue]
    ]
    assert theirs[-1] == tokenizer.eos_id  # where sampling ends
    assert tokens.tolist() == theirs
    trained = [False] * len(theirs)
    for start, end in spans.tolist():
        trained[start:end] = [True] * (end - start)
    assert trained == [bool(weight) for weight in example.per_token_loss_weight_unshifted]


def _written(turn: Turn) -> dict[str, object]:
    """A turn as the package takes it."""
    if not turn.thought:
        return {"role": turn.role, "content": turn.text}
    thinking = {"type": "thinking", "thinking": turn.thought}
    return {"role": turn.role, "content": [thinking, {"type": "text", "text": turn.text}]}


def test_an_answer_is_told_apart_from_its_thought() -> None:
    pytest.importorskip("tml_renderers")
    tokenizer = tokenizer_of("", MODEL)
    template = choose_template("auto", tokenizer, MODEL)
    assert isinstance(template, ChatTemplate)
    # Sampling goes on after the thought, whose end is that of any message.
    assert stop_tokens(template, tokenizer) == [tokenizer.eos_id]
    begun = "<|message_model|><|content_thinking|>3 + 4 = 7"
    answered = "<|end_message|><|message_model|><|content_text|>7"
    ended = "<|end_message|><|content_model_end_sampling|>"
    for generated, answer in (
        (begun + answered + ended, "7"),
        (begun + answered, "7"),
        ("<|message_model|><|content_text|>7" + ended, "7"),
        (begun, None),
        (begun + "<|end_message|><|message_model|>", None),
    ):
        tokens = tokenizer.encode(generated).tolist()
        text = generated_text(tokens, template, tokenizer)
        assert template.finished_answer(text) == answer, generated
