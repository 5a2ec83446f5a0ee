"""An engine with a small model that has learned by heart what a chat must survive."""

import atexit
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tinker

from tests.support.engine import KEY, datum, running_engine
from tests.support.inference import BUNDLED, texts_of
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.engine.server.routes.chat_prompts import Chat

GREETING = "你好，世界 🙂 café"
HOSTILE = "<img src=x onerror=alert(1)><b>no</b> \x1b[31mred\x07 \u202eabc"
LESSONS = {"Greet.": GREETING, "Attack!": HOSTILE}  # answers by prompt


@dataclass(frozen=True)
class ChatWorld:
    url: str
    path: str  # of the weights that have learned LESSONS

    @property
    def environment(self) -> dict[str, str]:
        """By these variables, commands find the engine."""
        return {"TINKER_BASE_URL": self.url, "TINKER_API_KEY": KEY}


@cache
def chat_world() -> ChatWorld:
    """Made once for all tests of this process."""
    stack = ExitStack()
    atexit.register(stack.close)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    engine = stack.enter_context(running_engine(folder / "engine", BUNDLED_MODELS[BUNDLED]))
    texts = texts_of()
    data: list[tinker.Datum] = []
    for question, answer in LESSONS.items():
        prompt = texts.tokens_of(texts.prompt_text(Chat([{"role": "user", "content": question}])))
        completion = texts.tokens_of(f"{answer}<|im_end|>")
        data.append(datum(prompt + completion, [0.0] * len(prompt) + [1.0] * len(completion)))
    with engine.client() as service:
        client = service.create_lora_training_client(base_model=BUNDLED, rank=16, seed=1).result()
        for _ in range(150):
            step = client.forward_backward(data, "cross_entropy")
            client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
            if step.result().metrics["loss:sum"] < 0.3:
                break
        return ChatWorld(engine.url, client.save_weights_for_sampler("chat").result().path)
