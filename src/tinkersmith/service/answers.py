"""Prompt tokens and samples -> what the SDK sends: requests for answers, and datums."""

from typing import TYPE_CHECKING, Any

import numpy as np

from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.settings.fields import Settings
from tinkersmith.text.templates import ChatTemplate, PromptTemplate
from tinkersmith.text.tokenize import TokenizedSample

if TYPE_CHECKING:
    from collections.abc import Sequence

    import tinker


def request_answers(
    client: "tinker.SamplingClient",
    prompt: "np.ndarray",  # (T,)
    settings: Settings,
    template: PromptTemplate,
    tokenizer: TextTokenizer,
    max_context: int | None,
    draws: int,
) -> Any:
    """The SDK's future of `draws` answers. The prompt must leave space for at least one token."""
    import tinker

    return client.sample(
        tinker.ModelInput.from_ints(prompt.tolist()),
        draws,
        sampling_of(settings, template, tokenizer, max_context, len(prompt)),
    )


def sampling_of(
    settings: Settings,
    template: PromptTemplate,
    tokenizer: TextTokenizer,
    max_context: int | None,
    prompt_tokens: int,
) -> "tinker.SamplingParams":
    """What the settings say of the answers to a prompt of so many tokens."""
    import tinker

    space = settings.sampling_max_tokens if max_context is None else max_context - prompt_tokens
    return tinker.SamplingParams(
        max_tokens=min(settings.sampling_max_tokens, space),
        temperature=settings.sampling_temperature,
        seed=settings.seed,
        stop=stop_tokens(template, tokenizer),
    )


def to_datum(tokenized: TokenizedSample, weight: float = 1.0) -> "tinker.Datum":
    """A sample as the SDK's datum: position i predicts token i + 1.

    `weight` is the factor of a completion token's loss.
    """
    import tinker

    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokenized.tokens[:-1].tolist()),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(tokenized.tokens[1:].astype(np.int64)),
            "weights": tinker.TensorData.from_numpy(tokenized.weights[1:] * np.float32(weight)),
        },
    )


def optim_params(settings: Settings, learning_rate: float) -> "tinker.types.OptimParams":
    """What the settings say of the optimizer, with the learning rate of one step."""
    import tinker

    if settings.optimizer == "dimuon":
        return tinker.types.DimuonParams(
            learning_rate=learning_rate, grad_clip_norm=settings.grad_clip_norm
        )
    beta1, beta2 = settings.adam_betas
    return tinker.AdamParams(
        learning_rate=learning_rate,
        beta1=beta1,
        beta2=beta2,
        weight_decay=settings.weight_decay,
        grad_clip_norm=settings.grad_clip_norm,
    )


def answer_within(
    tokens: "Sequence[int]", template: PromptTemplate, tokenizer: TextTokenizer
) -> str:
    """The answer within generated tokens, without its thought; "" if the thought never ends."""
    return template.answer(generated_text(tokens, template, tokenizer))


def generated_text(
    tokens: "Sequence[int]", template: PromptTemplate, tokenizer: TextTokenizer
) -> str:
    """The whole text of generated tokens, in the form that `template` finds the answer in."""
    if isinstance(template, ChatTemplate):
        return tokenizer.decode_all(tokens)
    return tokenizer.decode(tokens)


def stop_tokens(template: PromptTemplate, tokenizer: TextTokenizer) -> list[int]:
    """The tokens that end an answer: the template's own end token, and the model's."""
    end = tokenizer.encode(template.end)
    return sorted({tokenizer.eos_id, *(end.tolist() if len(end) == 1 else [])})
