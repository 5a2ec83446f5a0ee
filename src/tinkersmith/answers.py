"""Prompt tokens -> a request for answers, as the SAMPLING_* settings want them."""

from typing import TYPE_CHECKING, Any

from tinkersmith.prompts import PromptTemplate
from tinkersmith.settings import Settings
from tinkersmith.tokens import TextTokenizer, stop_tokens

if TYPE_CHECKING:
    import numpy as np
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
    """The SDK's future of `draws` answers. The prompt must leave room for one token at least."""
    import tinker

    room = settings.sampling_max_tokens if max_context is None else max_context - len(prompt)
    return client.sample(
        tinker.ModelInput.from_ints(prompt.tolist()),
        draws,
        tinker.SamplingParams(
            max_tokens=min(settings.sampling_max_tokens, room),
            temperature=settings.sampling_temperature,
            seed=settings.seed,
            stop=stop_tokens(template, tokenizer),
        ),
    )
