"""An exported folder, loaded by plain transformers (and peft) -> what it answers, and how probable.

Axes: T tokens, V vocabulary.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of a text's tokens, each given the tokens before it."""

    logprobs: tuple[float, ...]  # of the tokens but the first
    best: tuple[float, ...]  # of the most likely token there, and one more: after the last token
    best_ids: tuple[int, ...]
    end: float  # of an end token after the last token


class Reference:
    """The export as a plain model in float32."""

    def __init__(
        self, model: "nn.Module", ends: Sequence[int], load_base: "Callable[[], nn.Module] | None"
    ) -> None:
        """`load_base` loads the base model, where no adapter can be switched off instead."""
        self._model: Any = _without_defaults(model)
        self._load_base = load_base
        self._base: Any = None
        self.ends = frozenset(ends)  # the tokens that end an answer
        self.vocabulary = int(self._model.get_input_embeddings().weight.shape[0])
        self._known: dict[tuple[bool, tuple[int, ...]], Scores] = {}

    @property
    def has_base(self) -> bool:
        """Whether the untouched base model can be asked, too."""
        return self._load_base is not None or hasattr(self._model, "disable_adapter")

    def scores(self, tokens: Sequence[int], *, of_base: bool = False) -> Scores:
        """How probable each token is for the export, or for its base model."""
        key = of_base, tuple(tokens)
        if key not in self._known:
            self._known[key] = self._computed(tokens, of_base)
        return self._known[key]

    def _computed(self, tokens: Sequence[int], of_base: bool) -> Scores:
        import torch

        with self._chosen(of_base) as model, torch.no_grad():
            ids = torch.tensor([list(tokens)])  # (1, T)
            logits = model(input_ids=ids).logits[0].float()  # (T, V)
            logprobs = logits.log_softmax(-1)
            best, best_ids = logprobs.max(-1)  # (T,), (T,)
            own = logprobs[:-1].gather(-1, ids[0, 1:, None])[:, 0]  # (T - 1,)
            end = float(logprobs[-1, sorted(self.ends)].max())
        return Scores(
            tuple(cast("list[float]", own.tolist())),
            tuple(cast("list[float]", best.tolist())),
            tuple(cast("list[int]", best_ids.tolist())),
            end,
        )

    def greedy(self, prompt: Sequence[int], most: int, *, of_base: bool = False) -> list[int]:
        """The most likely tokens after a prompt, up to an end token, which is the last then."""
        import torch
        from transformers import GenerationConfig

        ends = sorted(self.ends)
        plain = GenerationConfig(
            do_sample=False, max_new_tokens=most, eos_token_id=ends, pad_token_id=ends[0]
        )
        with self._chosen(of_base) as model, torch.no_grad():
            ids = torch.tensor([list(prompt)])
            answer = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=plain
            )
        return cast("list[int]", answer[0, len(prompt) :].tolist())

    @contextmanager
    def _chosen(self, of_base: bool) -> Generator[Any, None, None]:
        if of_base and self._load_base is not None:
            if self._base is None:
                self._base = _without_defaults(self._load_base())
            yield self._base
            return
        switched: Any = self._model.disable_adapter() if of_base else nullcontext()
        with switched:
            yield self._model


def _without_defaults(model: "nn.Module") -> Any:
    """The model without its generation_config.json, which may penalise repetition, for example."""
    from transformers import GenerationConfig

    chosen: Any = model
    chosen.generation_config = GenerationConfig()
    if hasattr(chosen, "get_base_model"):  # of peft
        chosen.get_base_model().generation_config = GenerationConfig()
    return chosen
