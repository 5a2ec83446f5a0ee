"""Following a grammar as a model would that wants to write a text."""

from tinkersmith.engine.json_grammar import GrammarState
from tinkersmith.engine.server.routes.chat_prompts import ModelTexts


def follow(texts: ModelTexts, state: GrammarState, text: str) -> str:
    """As much of a text as a grammar allows; control tokens are single tokens, as a model's are."""
    taken: list[int] = []
    for token in texts.tokens_of(text):
        if not state.allowed()[token]:
            break
        state.add(token)
        taken.append(token)
    return texts.tokenizer.decode_all(taken)
