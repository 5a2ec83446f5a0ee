"""Today's model families as tiny folders, LoRA in the names of Tinker's cloud, and what both give.

The folders have the names of the published ones. The log-probabilities are computed in float64 from
the base model and the LoRA, by rules that are written here once more and share no code with the
export.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers as hf
from safetensors.torch import save_file

HIDDEN, MLP, EXPERTS, EXPERT_MLP, RANK, SCALING = 32, 48, 4, 16, 3, 0.5
TOKENS = [5, 9, 200, 31, 7, 77, 120, 64, 12]
_SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "eos_token_id": 255,
    "pad_token_id": 255,
    "bos_token_id": None,
}
_MOE: dict[str, Any] = {
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": EXPERT_MLP,
}
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": HIDDEN,
    "num_position_embeddings": 16,
    "patch_size": 4,
}
_SMALL_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": EXPERT_MLP,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}
_NEMOTRON: dict[str, Any] = {
    "layers_block_type": ["mamba", "moe", "attention", "moe"],
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 8,
    "conv_kernel": 4,
    "expand": 1,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "moe_intermediate_size": EXPERT_MLP,
    "moe_shared_expert_intermediate_size": 24,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "chunk_size": 8,
    "n_group": 1,
    "topk_group": 1,
}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_LATENT_ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
_DENSE = ("gate_proj", "up_proj", "down_proj")


def _qwen3_5() -> Any:
    text = hf.Qwen3_5TextConfig(**_SIZES, **_DELTA).to_dict()
    return hf.Qwen3_5ForConditionalGeneration(
        hf.Qwen3_5Config(text_config=text, vision_config=_VISION, tie_word_embeddings=False)
    )


def _qwen3_5_moe() -> Any:
    text = hf.Qwen3_5MoeTextConfig(
        **_SIZES, **_MOE, **_DELTA, shared_expert_intermediate_size=24
    ).to_dict()
    return hf.Qwen3_5MoeForConditionalGeneration(
        hf.Qwen3_5MoeConfig(text_config=text, vision_config=_VISION, tie_word_embeddings=False)
    )


def _gpt_oss() -> Any:
    return hf.GptOssForCausalLM(
        hf.GptOssConfig(
            **{**_SIZES, "intermediate_size": HIDDEN},
            head_dim=8,
            num_local_experts=EXPERTS,
            num_experts_per_tok=2,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=8,
        )
    )


def _kimi() -> Any:
    text = hf.DeepseekV3Config(**{**_SIZES, **_LATENT}).to_dict()
    return hf.Kimi_K25ForConditionalGeneration(
        hf.Kimi_K25Config(text_config=text, vision_config=_SMALL_VISION, tie_word_embeddings=False)
    )


def _gemma3() -> Any:
    text = hf.Gemma3TextConfig(
        **{**_SIZES, "tie_word_embeddings": True},
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
    ).to_dict()
    vision = {**_SMALL_VISION, "image_size": 28, "patch_size": 14}
    return hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(text_config=text, vision_config=vision)
    )


def _nemotron() -> Any:
    sizes = {name: value for name, value in _SIZES.items() if name != "num_hidden_layers"}
    return hf.NemotronHForCausalLM(hf.NemotronHConfig(**sizes, **_NEMOTRON))


def _granite_moe() -> Any:
    sizes = {**_SIZES, "intermediate_size": EXPERT_MLP}
    return hf.GraniteMoeForCausalLM(
        hf.GraniteMoeConfig(**sizes, num_local_experts=EXPERTS, num_experts_per_tok=2)
    )


@dataclass(frozen=True)
class Family:
    """How a family is made, and what of it the cloud trains."""

    make: Callable[[], Any]
    trained: Callable[[int], list[str]]  # the cloud's names in a layer, without "model.layers.N."
    quantised: str = ""  # how its published model is stored: "fp8", "int4" or "mxfp4"
    layers: int = 2
    stacked: bool = False  # whether the files have the experts of a layer as one tensor


def _of(attention: tuple[str, ...] = _ATTENTION, mlp: tuple[str, ...] = _DENSE) -> Any:
    return lambda layer: [
        *(f"self_attn.{name}" for name in attention),
        *(f"mlp.{name}" for name in mlp),
    ]


_CLOUD_EXPERTS = ("experts.w1", "experts.w2", "experts.w3")


def _qwen3_5_names(*mlp: str) -> Any:
    def names(layer: int) -> list[str]:
        inputs = ("q", "k", "v", "z", "a", "b")
        delta = [*(f"linear_attn.in_proj_{name}" for name in inputs), "linear_attn.out_proj"]
        attention = delta if layer == 0 else [f"self_attn.{name}" for name in _ATTENTION]
        return [*attention, *(f"mlp.{name}" for name in mlp)]

    return names


def _latent_names(layer: int) -> list[str]:
    shared = [f"shared_experts.{name}" for name in _DENSE]
    mlp = _DENSE if layer == 0 else [*_CLOUD_EXPERTS, *shared]
    return [
        *(f"self_attn.{name}" for name in _LATENT_ATTENTION),
        *(f"mlp.{name}" for name in mlp),
    ]


def _granite_names(layer: int) -> list[str]:
    return [
        *(f"self_attn.{name}" for name in _ATTENTION),
        *(f"block_sparse_moe.{name}" for name in _CLOUD_EXPERTS),
    ]


def _nemotron_names(layer: int) -> list[str]:
    experts = [f"mixer.{name}" for name in _CLOUD_EXPERTS]
    shared = ["mixer.shared_experts.up_proj", "mixer.shared_experts.down_proj"]
    return {
        0: ["mixer.gate_proj", "mixer.x_proj", "mixer.out_proj"],
        2: [f"mixer.{name}" for name in _ATTENTION],
    }.get(layer, [*experts, *shared])


FAMILIES: dict[str, Family] = {
    "Qwen3": Family(lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_SIZES, head_dim=8)), _of()),
    "Qwen3-MoE": Family(
        lambda: hf.Qwen3MoeForCausalLM(
            cast(Any, hf.Qwen3MoeConfig)(**_SIZES, **_MOE, head_dim=8)  # known, and not declared
        ),
        _of(mlp=_CLOUD_EXPERTS),
    ),
    "Qwen3.5 dense": Family(_qwen3_5, _qwen3_5_names(*_DENSE)),
    "Qwen3.5-MoE": Family(
        _qwen3_5_moe,
        _qwen3_5_names(*_CLOUD_EXPERTS, *(f"shared_expert.{name}" for name in _DENSE)),
    ),
    "Qwen3.5-MoE with stacked experts": Family(
        _qwen3_5_moe,
        _qwen3_5_names(*_CLOUD_EXPERTS, *(f"shared_expert.{name}" for name in _DENSE)),
        stacked=True,
    ),
    "Llama 3": Family(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES)), _of()),
    "gpt-oss": Family(
        _gpt_oss,
        lambda layer: [
            *(f"attn.{name}" for name in _ATTENTION),
            *(f"mlp.{name}" for name in _CLOUD_EXPERTS),
        ],
        quantised="mxfp4",
    ),
    "Nemotron-3": Family(_nemotron, _nemotron_names, layers=4),
    "DeepSeek V3": Family(
        lambda: hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**{**_SIZES, **_LATENT})),
        _latent_names,
        quantised="fp8",
    ),
    "Kimi K2": Family(_kimi, _latent_names, quantised="int4"),
    "Gemma 3": Family(_gemma3, _of()),
    "Mistral": Family(
        lambda: hf.MistralForCausalLM(hf.MistralConfig(**_SIZES, head_dim=8, sliding_window=8)),
        _of(),
    ),
    "Granite-MoE": Family(_granite_moe, _granite_names),
    "Qwen2-MoE": Family(
        lambda: hf.Qwen2MoeForCausalLM(
            hf.Qwen2MoeConfig(**_SIZES, **_MOE, shared_expert_intermediate_size=24)
        ),
        _of(mlp=(*_CLOUD_EXPERTS, *(f"shared_expert.{name}" for name in _DENSE))),
    ),
}


# ---- the base model


def make_family(folder: Path, name: str, *, quantised: bool = False) -> Any:
    """Save a tiny random model as its family is published; returns it in float64.

    `quantised` stores the weights in the published way; the model returned has the same numbers.
    """
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = family.make().float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())  # so that nothing is lost by storing
    model.save_pretrained(folder)
    tensors = _hub_tensors(folder, name)
    config = json.loads((folder / "config.json").read_text())
    if quantised:
        stored, config["quantization_config"] = _QUANTISE[family.quantised](tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        model = load_plain(folder, torch.float64)  # of the rounded numbers
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
        return model
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return load_plain(folder, torch.float64)


def _hub_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    if name == "Kimi K2":  # transformers renames too much when it saves this model
        tensors = {
            key.replace("language_model.model.blocks.", "language_model.model.layers."): tensor
            for key, tensor in tensors.items()
        }
    if FAMILIES[name].stacked:
        tensors = _stacked(tensors)
    return {
        key: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for key, tensor in tensors.items()
    }


def _stacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with the experts of each layer in two: gate and up, (E, 2 O, I), and down."""
    joined = {key: tensor for key, tensor in tensors.items() if ".experts." not in key}
    first = ".0.gate_proj.weight"
    for layer in [key.removesuffix(first) for key in tensors if key.endswith(".experts" + first)]:
        gates, ups, downs = (
            torch.stack([tensors[f"{layer}.{n}.{matrix}.weight"] for n in range(EXPERTS)])
            for matrix in _DENSE
        )
        joined[f"{layer}.gate_up_proj"] = torch.cat([gates, ups], dim=1)
        joined[f"{layer}.down_proj"] = downs
    return joined


def load_plain(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model in a folder, by transformers alone."""
    config = hf.AutoConfig.from_pretrained(folder)
    kind = hf.AutoModelForCausalLM
    if config.model_type == "kimi_k25":
        kind = hf.AutoModelForImageTextToText
    # "eager": the grouped product of experts knows no float64
    return kind.from_pretrained(folder, dtype=dtype, experts_implementation="eager").eval()


def _fp8(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Store all linear layers of the layers in blocks of 8 by 8, and round `tensors` to them."""
    stored: dict[str, torch.Tensor] = {}
    for key, weight in list(tensors.items()):
        if ".layers." not in key or weight.ndim != 2 or key.endswith("gate.weight"):
            stored[key] = weight
            continue
        blocks = weight.float().unfold(0, 8, 8).unfold(1, 8, 8)  # (O/8, I/8, 8, 8)
        scale = blocks.abs().amax((-1, -2)) / 448
        full = scale.repeat_interleave(8, 0).repeat_interleave(8, 1)
        stored[key] = (weight.float() / full).to(torch.float8_e4m3fn)
        stored[f"{key}_scale_inv"] = scale
        tensors[key] = stored[key].float() * full
    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    return stored, {**config, "weight_block_size": [8, 8]}


def _int4(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Store the experts in groups of 16 of 4 bits, and round `tensors` to them."""
    stored: dict[str, torch.Tensor] = {}
    for key, weight in list(tensors.items()):
        if ".experts." not in key:
            stored[key] = weight
            continue
        groups = weight.float().reshape(weight.shape[0], -1, 16)
        scale = (groups.abs().amax(-1) / 7).bfloat16()
        values = (groups / scale.float()[..., None]).round().clamp(-8, 7)
        tensors[key] = (values * scale.float()[..., None]).reshape(weight.shape)
        eights = (values.reshape(weight.shape[0], -1, 8) + 8).long()  # the value plus 8
        packed = sum(eights[..., n] << (4 * n) for n in range(8))
        packed = torch.where(packed >= 2**31, packed - 2**32, packed).int()
        stored[f"{key}_packed"], stored[f"{key}_scale"] = packed, scale
        stored[f"{key}_shape"] = torch.tensor(weight.shape, dtype=torch.int32)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    group = {"targets": ["Linear"], "weights": {**weights, "group_size": 16}}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    return stored, {**config, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def _mxfp4(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Store the stacked experts in blocks of 32 of 4 bits, and round `tensors` to them."""
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = torch.cat([values, -values])
    stored: dict[str, torch.Tensor] = {}
    for key, weight in list(tensors.items()):
        if not key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[key] = weight
            continue
        turned = weight.float().transpose(1, 2)  # (E, O, I)
        blocks = turned.reshape(*turned.shape[:2], -1, 32)
        exponents = torch.ceil(torch.log2(blocks.abs().amax(-1) / 6))
        scaled = blocks / torch.exp2(exponents)[..., None]
        nearest = (scaled[..., None] - values).abs().argmin(-1)
        rounded = values[nearest] * torch.exp2(exponents)[..., None]
        tensors[key] = rounded.reshape(turned.shape).transpose(1, 2).contiguous()
        pairs = nearest.reshape(*nearest.shape[:-1], 16, 2)
        stored[f"{key}_blocks"] = (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8)
        stored[f"{key}_scales"] = (exponents + 127).to(torch.uint8)
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
    return stored, {"quant_method": "mxfp4", "modules_to_not_convert": plain}


_QUANTISE: dict[str, Any] = {"fp8": _fp8, "int4": _int4, "mxfp4": _mxfp4}


# ---- the LoRA


def make_cloud_lora(
    folder: Path, name: str, model: Any, *, only: str = "", leave: str = "-"
) -> dict[str, Any]:
    """Write a random LoRA as the cloud names it, and add it to `model`, which is in float64.

    Args:
        only: train only what has this in its name.
        leave: leave out what has this in its name.
    """
    generator = torch.Generator().manual_seed(1)
    family = FAMILIES[name]
    tensors: dict[str, torch.Tensor] = {}
    paths = [
        f"model.layers.{layer}.{path}"
        for layer in range(family.layers)
        for path in family.trained(layer)
    ]
    for path in [*paths, "model.unembed_tokens"]:
        if only not in path or leave in path:
            continue
        regions = list(_regions(name, model, path))
        experts = len(regions) if ".experts." in path else 0
        if not regions:  # the matrix that experts without a gate do not have
            empty = torch.zeros(EXPERTS, RANK, 0)
            tensors[f"base_model.model.{path}.lora_A.weight"] = empty
            tensors[f"base_model.model.{path}.lora_B.weight"] = empty.clone()
            continue
        outputs, inputs = regions[0].shape
        # The side of the hidden size is shared by all experts.
        shared_a = not path.endswith("w2")
        counts = (1, experts) if shared_a else (experts, 1)
        a, b = (
            0.2 * torch.randn(*((count,) if experts else ()), *sizes, generator=generator)
            for count, sizes in zip(counts, ((RANK, inputs), (outputs, RANK)), strict=True)
        )
        tensors[f"base_model.model.{path}.lora_A.weight"] = a
        tensors[f"base_model.model.{path}.lora_B.weight"] = b
        with torch.no_grad():
            for number, region in enumerate(regions):
                own_a = a[number if a.shape[0] > 1 else 0] if experts else a
                own_b = b[number if b.shape[0] > 1 else 0] if experts else b
                region += SCALING * own_b.double() @ own_a.double()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"r": RANK, "lora_alpha": RANK * SCALING}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors


def _regions(name: str, model: Any, path: str) -> Any:
    """The (O, I) views of the model's weights that a name of the cloud stands for."""
    if path == "model.unembed_tokens":
        # A tied layer must not change the embedding.
        if model.lm_head.weight is model.get_input_embeddings().weight:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        yield model.lm_head.weight.data
        return
    text = getattr(model.model, "language_model", model.model)
    _, _, number, *rest = path.split(".")
    module = text.layers[int(number)]
    for part in rest[:-1]:
        module = getattr(module, {"attn": "self_attn"}.get(part, part))
    leaf = rest[-1]
    if rest[-2] == "experts":
        yield from _expert_regions(name, module, leaf)
    elif leaf in ("in_proj_q", "in_proj_k", "in_proj_v"):
        first, last = {"q": (0, 16), "k": (16, 32), "v": (32, 64)}[leaf[-1]]
        yield module.in_proj_qkv.weight.data[first:last]
    elif name == "Nemotron-3" and leaf in ("gate_proj", "x_proj"):
        first = 0 if leaf == "gate_proj" else 32
        yield module.in_proj.weight.data[first : first + 32]
    else:
        yield getattr(module, leaf).weight.data


def _expert_regions(name: str, experts: Any, leaf: str) -> Any:
    if name == "Nemotron-3":
        stack = {"w1": getattr(experts, "up_proj", None), "w2": experts.down_proj}.get(leaf)
        yield from () if stack is None else stack.data
        return
    for number in range(EXPERTS):
        both, down = experts.gate_up_proj.data[number], experts.down_proj.data[number]
        if name == "gpt-oss":
            yield {"w1": both[:, 0::2].T, "w3": both[:, 1::2].T, "w2": down.T}[leaf]
        else:
            half = both.shape[0] // 2
            yield {"w1": both[:half], "w3": both[half:], "w2": down}[leaf]


@torch.no_grad()
def logprobs(model: Any) -> torch.Tensor:
    """The log-probabilities of `TOKENS` but the first."""
    ids = torch.tensor([TOKENS])
    logits = model(input_ids=ids).logits[0, :-1].double()  # (T - 1, V)
    return logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
