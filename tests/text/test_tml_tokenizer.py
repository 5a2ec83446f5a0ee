"""Inkling's tokenizer and chat format, against the package that defines them."""

import sys

import pytest

from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.errors import UserError
from tinkersmith.text.choose import choose_template
from tinkersmith.text.tokenize import encode_samples
from tinkersmith.text.tokenizer import tokenizer_of

MODEL = "thinkingmachines/Inkling-Small"
SAID = [("system", "Be brief."), ("user", "Hello <|end_message|> x"), ("assistant", "Hi! 你好")]


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tml_renderers", None)
    monkeypatch.setitem(sys.modules, "tml_renderers.tokenizers", None)
    with pytest.raises(UserError, match=r"tml-renderers.*pip install 'tinkersmith\[inkling\]'"):
        tokenizer_of("", MODEL)


def test_a_conversation_becomes_the_tokens_of_the_packages_own_renderer() -> None:
    pytest.importorskip("tml_renderers")
    from tml_renderers import chat, tokenizers, v0  # pyright: ignore[reportMissingImports]

    tokenizer = tokenizer_of("", f"{MODEL}:peft:262144")
    template = choose_template("auto", tokenizer, MODEL)
    sample = Sample(tuple(Turn(role, text) for role, text in SAID), Source("a.json", 1))  # type: ignore[arg-type]
    ((_, [(tokens, spans)]),) = encode_samples([sample], template, tokenizer)
    renderer = v0.Renderer(tokenizers.O200kBaseChatTokenizer())
    messages = chat.OpenAIMessage.from_oss_messages(
        [{"role": role, "content": text} for role, text in SAID]
    )
    (example,) = renderer.render_for_sft(messages)
    theirs = [
        token
        for span in example.input_token_spans
        for token in span.span.int_tokens  # pyright: ignore[reportAttributeAccessIssue]
    ]
    assert theirs[-1] == tokenizer.eos_id  # where sampling ends; the template leaves it out
    assert tokens.tolist() == theirs[:-1]
    (start, _), *_ = spans.tolist()
    trained = [bool(weight) for weight in example.per_token_loss_weight_unshifted]
    assert trained.index(True) == start
    assert tokenizer.decode(tokens[start:]) == "Hi! 你好"
