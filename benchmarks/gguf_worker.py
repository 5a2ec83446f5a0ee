"""Greedy answers by llama.cpp, in the Python that has llama-cpp-python.

python benchmarks/gguf_worker.py MODEL.gguf TASKS.json, which holds prompts, longest and end.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def main(file: str, tasks: str) -> None:
    llama: Any = importlib.import_module("llama_cpp")
    asked = json.loads(Path(tasks).read_text(encoding="utf-8"))
    context = max(map(len, asked["prompts"])) + asked["longest"] + 8
    model: Any = llama.Llama(file, n_ctx=context, verbose=False)
    answers: list[list[int]] = []
    for prompt in asked["prompts"]:
        answer: list[int] = []
        for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
            answer.append(token)
            if token == asked["end"] or len(answer) == asked["longest"]:
                break
        answers.append(answer)
    texts = [model.tokenize(text.encode(), add_bos=False, special=True) for text in asked["texts"]]
    print(json.dumps({"answers": answers, "tokens": texts}))


if __name__ == "__main__":
    main(*sys.argv[1:])
