"""A tokenizer -> a tiny random model of its vocabulary, which our own engine serves by any name.

The stand-in lets a rehearsal send what a run will send. Its losses and answers say nothing of the
model that it stands for. No weights of that model are needed.
"""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinkersmith.errors import UserError
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress
from tinkersmith.service.connection import Server, StandIn, serving
from tinkersmith.service.embedded import start_engine
from tinkersmith.settings.fields import Settings

if TYPE_CHECKING:
    from tinkersmith.prompts.text_tokenizer import TextTokenizer

_HIDDEN, _HEADS, _HEAD, _MLP = 32, 2, 16, 64
_LONGEST = 1 << 20  # tokens that the stand-in takes where nobody says what the model takes
_LARGEST_ADAPTER = 1 << 30  # bytes of the output layer's adapter with its optimizer


@contextmanager
def open_stand_in(
    settings: Settings,
    folder: Path,
    name: str,
    kind: str,
    max_context: int | None,
    tokenizer: "TextTokenizer",
    progress: Progress,
) -> Generator[Server, None, None]:
    """Our own engine with a stand-in for the model `name`, which runs during the block.

    Args:
        folder: where the stand-in and what it saves are written.
        kind: that of the server which the stand-in stands for: "embedded" or "url".
        max_context: what the model takes; None where that is not known.

    Raises:
        UserError: `folder` cannot be written to, or the engine does not start.
    """
    model = folder / "model"
    vocabulary = embedding_rows(tokenizer)
    with progress.doing(f"making a stand-in with {counted(vocabulary, 'token')}"):
        try:
            write_stand_in(model, vocabulary, tokenizer.eos_id, max_context or _LONGEST)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written to: {error.strerror or error}. Free some space, or "
                "set TMPDIR to another folder."
            ) from None
    trains_output = 16 * vocabulary * settings.lora_rank <= _LARGEST_ADAPTER
    stand_in = StandIn(max_context, tokenizer, trains_output)
    engine = start_engine(folder, [f"{name}={model}"])
    with serving(engine, kind, "", "", progress, stand_in) as server:
        yield server


def embedding_rows(tokenizer: "TextTokenizer") -> int:
    """How many rows an embedding needs for every id of a tokenizer."""
    ids = [tokenizer.eos_id, *tokenizer.special_tokens.values(), *tokenizer.control_tokens.values()]
    return max(tokenizer.vocab_size, *(number + 1 for number in ids))


def write_stand_in(folder: Path, vocabulary: int, end: int, context: int) -> None:
    """Write a Llama of one layer with random weights, in Hugging Face format.

    Half of its tokens are `end`, so that a rehearsal does not wait for long answers.

    Raises:
        OSError: the folder cannot be written to.
    """
    from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

    chance = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        values = chance.standard_normal((rows, columns), dtype=np.float32)
        return values * np.float32(columns**-0.5)

    embedding, output = matrix(vocabulary, _HIDDEN), matrix(vocabulary, _HIDDEN)
    # The first value of each hidden state is large; the end's row alone reads it. After the norm
    # it is about the root of the width.
    embedding[:, 0], output[:, 0] = 4.0, 0.0
    output[end, 0] = np.log(vocabulary) * _HIDDEN**-0.5
    width, layer = _HEADS * _HEAD, "model.layers.0."
    down = 0.1 * matrix(_HIDDEN, _MLP)
    joined = 0.1 * matrix(_HIDDEN, width)
    down[0], joined[0] = 0.0, 0.0
    tensors = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": output,
        "model.norm.weight": np.ones(_HIDDEN, dtype=np.float32),
        f"{layer}input_layernorm.weight": np.ones(_HIDDEN, dtype=np.float32),
        f"{layer}post_attention_layernorm.weight": np.ones(_HIDDEN, dtype=np.float32),
        f"{layer}self_attn.q_proj.weight": matrix(width, _HIDDEN),
        f"{layer}self_attn.k_proj.weight": matrix(width, _HIDDEN),
        f"{layer}self_attn.v_proj.weight": matrix(width, _HIDDEN),
        f"{layer}self_attn.o_proj.weight": joined,
        f"{layer}mlp.gate_proj.weight": matrix(_MLP, _HIDDEN),
        f"{layer}mlp.up_proj.weight": matrix(_MLP, _HIDDEN),
        f"{layer}mlp.down_proj.weight": down,
    }
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": _HIDDEN,
        "intermediate_size": _MLP,
        "num_hidden_layers": 1,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "head_dim": _HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "eos_token_id": end,
        "bos_token_id": None,
        "dtype": "float32",
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
