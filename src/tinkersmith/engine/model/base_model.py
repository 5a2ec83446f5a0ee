"""A folder in Hugging Face format -> a frozen model on which many adapters can work.

Axes: T packed tokens, H hidden size, V vocabulary.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import cast

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.hardware.memory import machine_memory
from tinkersmith.engine.hardware.processor import multiplies_bf16
from tinkersmith.engine.images import families
from tinkersmith.engine.images.vision import Vision, through_layers
from tinkersmith.engine.log import log
from tinkersmith.engine.model import attention
from tinkersmith.engine.model.attention import (
    AttentionContext,
    CachedRows,
    PackedDocuments,
    SeenLayer,
    attending,
    layers_seen,
)
from tinkersmith.engine.model.dense import DenseModel, dense_model, is_dense
from tinkersmith.engine.model.dtype_cast import compute_in_float32
from tinkersmith.engine.model.experts import find_experts, part_shapes
from tinkersmith.engine.model.kernels import Kernels
from tinkersmith.engine.model.lora import (
    Active,
    Adapter,
    JoinedLoraLinear,
    LayerShape,
    LoraLinear,
    using,
)
from tinkersmith.engine.model.recurrent import (
    joined_rows,
    recurrent_layers,
    wrap_recurrent_layers,
)
from tinkersmith.engine.storage.catalogue import check_base_folder, context_length, model_config
from tinkersmith.errors import reason_of
from tinkersmith.files import read_json_object
from tinkersmith.fingerprint import safetensors_header
from tinkersmith.machine.memory import float32_is_affordable

_ROUTERS = ("gate", "router", "shared_expert_gate")  # they stay frozen
_PROJECTION = re.compile(r"\.(self_attn|mlp)\.\w+_proj\.weight$")  # of the dense families
# Tensors of parts that see images or predict several tokens at a time.
_NOT_LOADED = re.compile(r"(?:^|\.)(?:visual|vision_\w+|multi_modal_projector|mm_projector|mtp)\.")
_NOT_LOADED_BESIDE_VISION = re.compile(r"(?:^|\.)mtp\.")  # of models that see here
# Names in a folder that has these parts besides -> names in a model of text alone.
_TEXT_NAMES = {
    r"^(model\.)?language_model\.lm_head\.": "lm_head.",
    r"^(model\.)?language_model\.(model\.)?": "model.",
}

# Runs a check by its name and returns its result, or returns what it knows from an earlier start.
RunCheck = Callable[[str, Callable[[], float]], float]


def run_now(name: str, check: Callable[[], float]) -> float:
    return check()


@dataclass(frozen=True, slots=True)
class LogitsForm:
    """What a family does with the output layer's product x W^T besides."""

    scale: float = 1.0  # logits are this times the product (Cohere, Granite)
    softcap: float | None = None  # then softcap tanh(logits / softcap) (Gemma 2)


@dataclass
class BaseModel:
    name: str
    folder: Path
    model: PreTrainedModel
    linears: dict[str, LoraLinear]  # all linear layers that a LoRA can train, by module path
    shapes: dict[str, LayerShape]  # of these layers and of the parts of experts
    parts: dict[str, list[str]]  # "attention" | "mlp" | "unembed" -> module paths
    why_not: dict[str, str]  # the reason why a part has none
    vocab_size: int
    max_context: int
    eos_ids: frozenset[int]
    tied: bool
    dtype: torch.dtype  # of the computation; frozen weights may be narrower
    logits_form: LogitsForm
    cache: "CacheSizes"
    layers: int = field(init=False)
    dense: DenseModel | None = None  # its layers laid out for kernels, if they know its family
    kernels: Kernels | None = None  # what computes `dense`; None: the model's own layers compute
    vision: Vision | None = None  # None: it reads text only

    def __post_init__(self) -> None:
        self.layers = self.model.config.get_text_config().num_hidden_layers

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def arch(self) -> str:
        return str(self.model.config.model_type)

    @property
    def unembed(self) -> LoraLinear:
        return self.linears[self.parts["unembed"][0]]

    def hidden(
        self, tokens: torch.Tensor, document_lengths: Sequence[int], adapter: Adapter | None
    ) -> torch.Tensor:
        """The last layer's output of documents packed end to end, each alone: (T,) -> (T, H)."""
        if self.vision is not None:
            positions = self.vision.positions_of_documents(tokens, document_lengths)
            return self.run(tokens, positions, PackedDocuments(document_lengths), adapter)
        positions = torch.cat([torch.arange(n, device=self.device) for n in document_lengths])
        return self.run(tokens, positions, PackedDocuments(document_lengths), adapter)

    def run(
        self,
        tokens: torch.Tensor,  # (T,) or (B, 1)
        positions: torch.Tensor,  # the same shape; (3, T) or (3, B) of a model that sees
        context: AttentionContext,
        adapters: Active,
    ) -> torch.Tensor:  # (T, H) or (B, H)
        if self.vision is not None and positions.shape != tokens.shape:
            with attending(context), using(adapters):
                return through_layers(self.vision, self.model, tokens.to(self.device), positions)
        shape = (1, -1) if tokens.ndim == 1 else tokens.shape
        with attending(context), using(adapters):
            output = self.model.base_model(
                input_ids=tokens.to(self.device).view(shape),
                position_ids=positions.view(shape),
                use_cache=False,
            )
        hidden = output.last_hidden_state.flatten(0, 1)
        return hidden if self.logits_form.scale == 1 else hidden * self.logits_form.scale

    def logits(self, hidden: torch.Tensor, adapters: Active) -> torch.Tensor:
        """(T, H) -> (T, V) in fp32: a soft-max over a large vocabulary needs the digits."""
        with using(adapters):
            logits = self.unembed(hidden).float()
        cap = self.logits_form.softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """What sampling keeps of a sequence."""

    attention_layers: tuple[int, ...]  # those that have keys and values
    windows: tuple[int | None, ...]  # of these: the most tokens that are kept
    token_bytes: tuple[int, ...]  # of these
    per_row: int  # bytes of the states of other layers, which do not grow

    def of(self, tokens: int) -> int:
        """Bytes of a sequence."""
        kept = (
            size * (tokens if window is None else min(tokens, window))
            for size, window in zip(self.token_bytes, self.windows, strict=True)
        )
        return self.per_row + sum(kept)


@dataclass(frozen=True, slots=True)
class LinearStorage:
    """A way to store the frozen layers of attention and MLPs other than in the model's dtype."""

    name: str  # the value of --dtype that asks for it
    itemsize: int  # bytes of a weight
    # Replaces layers one after another, each on the device then, so that no GPU holds them all in
    # full width.
    store: Callable[[Iterable[LoraLinear], torch.device], None]


def load_base_model(
    name: str,
    folder: Path | str,
    dtype: str = "auto",
    device: str = "cpu",
    storage: LinearStorage | None = None,
    run_check: RunCheck = run_now,
) -> BaseModel:
    """Load and freeze the model of `folder`; safetensors only.

    Args:
        run_check: runs the comparison with plain transformers, or knows its result.

    Raises:
        Refused: no such folder, not a causal language model, or one this engine would get wrong.
    """
    folder = Path(folder)
    check_base_folder(folder)
    try:
        whole = AutoConfig.from_pretrained(folder, local_files_only=True)
        if _sees(folder, whole.model_type):
            return _load_with_vision(name, folder, whole, dtype, device, storage, run_check)
        config = _text_part(whole)
        if storage is not None and not is_dense(config):
            raise _not_stored(name, config, storage)
        with nullcontext() if config is whole else _no_list_of_other_parts():
            answer = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=_dtype(folder, dtype, device),
                attn_implementation=attention.NAME,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                key_mapping=None if config is whole else _TEXT_NAMES,
            )
        loaded, about = cast("tuple[object, dict[str, object]]", answer)
        _refuse_missing_weights(folder, about)
        _log_left_out(
            name,
            folder,
            _NOT_LOADED,
            "only its text part is used, without images and without the prediction of several "
            "tokens at a time",
        )
        place = torch.device("cpu" if storage is not None else device)
        model = cast(PreTrainedModel, loaded).to(place)  # type: ignore[arg-type]
        return base_model_of(name, folder, model, torch.device(device), storage, run_check)
    except (Refused, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged config.json makes transformers fail in any way
        reason = " ".join(str(error).split()).partition(". ")[0][:300].rstrip(".")
        what = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        raise Refused(
            f"the model in {folder} cannot be loaded: {what}. Its config.json or weights are "
            "damaged, or transformers or this engine does not know the architecture."
        ) from error


def _load_with_vision(
    name: str,
    folder: Path,
    config: PreTrainedConfig,
    dtype: str,
    device: str,
    storage: LinearStorage | None,
    run_check: RunCheck,
) -> BaseModel:
    if storage is not None:
        raise _not_stored(name, config, storage)
    model, vision = _text_and_vision(name, folder, config, dtype, device, run_check)
    several = "the prediction of several tokens at a time is not used"
    _log_left_out(name, folder, _NOT_LOADED_BESIDE_VISION, several)
    base = base_model_of(name, folder, model, torch.device(device), run_check=run_check)
    base.vision = vision
    return base


def _text_and_vision(
    name: str, folder: Path, config: PreTrainedConfig, dtype: str, device: str, run_check: RunCheck
) -> tuple[PreTrainedModel, Vision]:
    answer = AutoModelForImageTextToText.from_pretrained(
        folder,
        config=config,
        dtype=_dtype(folder, dtype, device),
        attn_implementation="sdpa",  # of the vision tower
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    loaded, about = cast("tuple[object, dict[str, object]]", answer)
    _refuse_missing_weights(folder, about)
    whole = cast(PreTrainedModel, loaded).to(device).eval()  # type: ignore[arg-type]
    model, tower = families.take_apart(whole, attention.NAME)
    placeholder = int(config.image_token_id)
    vision = Vision(name, folder, tower, families.sections(config), placeholder)
    run_check("images", lambda: _compare_with_images(folder, whole, model, vision))
    return model, vision


@torch.no_grad()
def _compare_with_images(
    folder: Path, whole: PreTrainedModel, model: PreTrainedModel, vision: Vision
) -> float:
    """Check that a text with an image gives what transformers gives for the whole model.

    Returns:
        The relative difference of the logits.

    Raises:
        Refused: it does not.
    """
    image, patches, grid = vision.example()
    tokens = torch.cat([torch.arange(5), torch.from_numpy(image.ids()), torch.arange(5, 10)])
    tokens = tokens.to(model.device)
    positions = vision.positions_of_documents(tokens, [len(tokens)])
    with attending(PackedDocuments([len(tokens)])):
        hidden = through_layers(vision, model, tokens, positions)
    head = cast(nn.Linear, model.get_output_embeddings())
    ours, seen = head(hidden).float(), tokens < 0
    answer = whole(
        input_ids=torch.where(seen, vision.placeholder, tokens)[None],
        pixel_values=patches.to(model.device, model.dtype),
        image_grid_thw=grid.to(model.device),
        mm_token_type_ids=seen.int()[None],
        use_cache=False,
    )
    theirs = answer.logits[0].float()
    _refuse_unless_finite(whole, folder)
    difference = ((ours - theirs).norm() / theirs.norm()).item()
    if not difference <= (1e-3 if model.dtype == torch.float32 else 0.1):
        raise Refused(
            f"{vision.processor.name} ({whole.config.model_type}) computes something with images "
            f"that this engine does not reproduce (relative difference {difference:.1e}); this "
            "version of transformers is not supported for it."
        )
    return difference


def _sees(folder: Path, model_type: str) -> bool:
    """Whether a folder's model is loaded with the part that sees images."""
    return families.sees(model_type, lambda: parameter_count(folder, families.TOWER) > 0)


def _log_left_out(name: str, folder: Path, left_out: re.Pattern[str], why: str) -> None:
    if count := parameter_count(folder, left_out):
        whole = f"{parameter_count(folder):,}"
        log.info("%s: %s of %s parameters are not loaded: %s", name, f"{count:,}", whole, why)


def _not_stored(name: str, config: PreTrainedConfig, storage: LinearStorage) -> Refused:
    return Refused(
        f"{name} ({config.model_type}) cannot be loaded with --dtype {storage.name}, which "
        "is for Llama, Mistral, Qwen2 and Qwen3; use --dtype bfloat16."
    )


def _text_part(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the text part, if the model has others and transformers knows it."""
    text = config.get_text_config()
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return config
    if text is not config and getattr(config, "tie_word_embeddings", False):
        text.tie_word_embeddings = True  # said of the whole only
    return text


@contextmanager
def _no_list_of_other_parts() -> Iterator[None]:
    """Keep transformers from warning of each tensor that the text part does not use."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _refuse_missing_weights(folder: Path, about: dict[str, object]) -> None:
    """transformers fills in random weights for tensors that it does not find.

    Raises:
        Refused: there are such tensors.
    """
    for kind, words in (("missing_keys", "lack"), ("mismatched_keys", "have another shape of")):
        names = sorted(map(str, cast("Iterable[object]", about.get(kind) or ())))
        if names:
            raise Refused(
                f"the weights in {folder} {words} {names[0]}, so they do not belong to its "
                "config.json. Copy the model again."
            )


def base_model_of(
    name: str,
    folder: Path,
    model: PreTrainedModel,
    device: torch.device,
    storage: LinearStorage | None = None,
    run_check: RunCheck = run_now,
) -> BaseModel:
    """Freeze a model that was made with this engine's attention.

    Raises:
        Refused: this engine would get it wrong.
    """
    model.eval().requires_grad_(False)
    if model.base_model is model:
        raise Refused(
            f"transformers does not say where the layers of {name} ({model.config.model_type}) end "
            "and its output layer begins, so this architecture is not supported."
        )
    text_config = model.config.get_text_config()
    experts, why_no_experts = find_experts(model)
    recurrent = recurrent_layers(model)
    joined = _join_loras(model, recurrent)
    parts = _linear_parts(model, recurrent.keys())
    linears = {path: _replace(model, path) for paths in parts.values() for path in paths}
    wrap_recurrent_layers(model, recurrent)
    if storage is not None:
        stored = [linears[path] for group in ("attention", "mlp") for path in parts[group]]
        storage.store(stored, device)
        model.to(device)  # type: ignore[arg-type]
    in_float32 = storage is None and _needs_float32(model, device)
    if in_float32:
        compute_in_float32(model, linears.values())
    shapes = {
        path: LayerShape(layer.base.in_features, layer.base.out_features)
        for path, layer in linears.items()
    }
    shapes |= joined
    parts["attention"] += joined
    for layer in experts.values():
        expert_shapes = part_shapes(layer)
        shapes |= expert_shapes
        parts["mlp"] += expert_shapes
    if why_no_experts:
        parts["mlp"] = []
    embedding = cast(nn.Embedding, model.get_input_embeddings()).weight  # (V, H)
    base = BaseModel(
        name=name,
        folder=folder,
        model=model,
        linears=linears,
        shapes=shapes,
        parts=parts,
        why_not={"mlp": why_no_experts},
        vocab_size=embedding.shape[0],
        max_context=_max_context(name, folder, text_config),
        eos_ids=_eos_ids(folder, model),
        tied=embedding is linears[parts["unembed"][0]].weight,
        dtype=torch.float32 if in_float32 else model.dtype,
        logits_form=_logits_form(text_config),
        cache=_dense_cache_sizes(model, torch.float32 if in_float32 else model.dtype),
    )
    if not is_dense(model.config):
        base.cache = _measured_cache_sizes(base)
    window = int(run_check("plain transformers", lambda: _compare_with_plain(base)))
    if window and is_dense(model.config):
        base.cache = _measured_cache_sizes(base)
    if not is_dense(model.config):
        run_check("one token at a time", lambda: _compare_decoding(base))
    if base.logits_form == LogitsForm():
        base.dense = dense_model(model, window or None)
    return base


def _needs_float32(model: PreTrainedModel, device: torch.device) -> bool:
    narrow = device.type == "cpu" and model.dtype == torch.bfloat16
    return narrow and is_dense(model.config) and not multiplies_bf16()


def memory_of_weights(
    folder: Path, dtype: str, device: str, storage: LinearStorage | None = None
) -> int:
    """Bytes that the model of `folder` takes as it would be loaded."""
    wide = _dtype(folder, dtype, device).itemsize
    if storage is None:
        left_out = _NOT_LOADED
        if _sees(folder, str(model_config(folder).get("model_type"))):
            left_out = _NOT_LOADED_BESIDE_VISION
        return wide * (parameter_count(folder) - parameter_count(folder, left_out))
    projections = parameter_count(folder, _PROJECTION)
    return storage.itemsize * projections + wide * (parameter_count(folder) - projections)


def _dtype(folder: Path, wanted: str, device: str) -> torch.dtype:
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    if device != "cpu":
        return torch.bfloat16
    wide = float32_is_affordable(
        parameter_count(folder), machine_memory(), multiplies_bf16=multiplies_bf16()
    )
    return torch.float32 if wide else torch.bfloat16


def parameter_count(folder: Path, pattern: re.Pattern[str] = re.compile("")) -> int:
    """The number of parameters in a model folder's tensors whose names match.

    Raises:
        Refused: a file is damaged.
    """
    count = 0
    try:
        for file in folder.glob("*.safetensors"):
            for name, entry in safetensors_header(file).items():
                count += prod(entry.shape) if pattern.search(name) else 0
    except OSError as error:
        raise Refused(f"{error.filename or folder} cannot be read: {reason_of(error)}.") from None
    except ValueError as error:
        raise Refused(str(error)) from None
    return count


def _max_context(name: str, folder: Path, config: PreTrainedConfig) -> int:
    """The longest document that the model takes: what the server announces.

    Raises:
        Refused: positions depend on the other documents of a pack or batch.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    for scaling in nested or [rope]:
        if scaling.get("rope_type") == "dynamic":
            raise Refused(
                f"{name} has dynamic rotary positions, which depend on the longest sequence of a "
                "batch; this engine packs sequences together and does not support it."
            )
    # Where config.json does not say, transformers knows what the family has.
    default = int(getattr(config, "max_position_embeddings", 0) or 2048)
    return context_length(folder) or default


def _logits_form(config: PreTrainedConfig) -> LogitsForm:
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere's name
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite's
    return LogitsForm(float(scale), getattr(config, "final_logit_softcapping", None))


def _join_loras(model: PreTrainedModel, layers: Mapping[str, nn.Module]) -> dict[str, LayerShape]:
    """Let the joined projections of layers with a state take LoRAs; the shapes of their parts."""
    shapes: dict[str, LayerShape] = {}
    for path, layer in layers.items():
        for name, rows in joined_rows(layer).items():
            linear = cast(nn.Linear, getattr(layer, name))
            parts = [(f"{path}.{part}", count) for part, count in rows]
            setattr(layer, name, JoinedLoraLinear(linear, f"{path}.{name}", parts))
            for part, count in parts:
                shapes[part] = LayerShape(linear.in_features, count)
    return shapes


def _linear_parts(model: PreTrainedModel, recurrent: Collection[str]) -> dict[str, list[str]]:
    """The paths of the linear layers of attention, of the MLPs, and of the output layer.

    Layers with a state stand in the place of attention, and count as such.
    """
    parts: dict[str, list[str]] = {"attention": [], "mlp": [], "unembed": []}
    unembed = model.get_output_embeddings()
    for path, module in model.named_modules():
        *parents, name = path.split(".")
        if not isinstance(module, nn.Linear) or "experts" in parents:
            continue
        parent = path.rpartition(".")[0]
        if isinstance(model.get_submodule(parent), JoinedLoraLinear):
            continue
        if module is unembed:
            parts["unembed"].append(path)
        elif (
            parent in recurrent
            or hasattr(model.get_submodule(parent), "num_key_value_groups")
            or any("attn" in word or "attention" in word for word in parents)
        ):
            parts["attention"].append(path)
        elif name not in _ROUTERS and any(
            word in ("mlp", "feed_forward", "ffn", "mixer") for word in parents
        ):
            parts["mlp"].append(path)
    if not parts["unembed"]:
        raise Refused("this model's output layer is not a linear layer, so it is not supported.")
    return parts


def _replace(model: nn.Module, path: str) -> LoraLinear:
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    layer = LoraLinear(getattr(parent, name), path)
    setattr(parent, name, layer)
    return layer


def _eos_ids(folder: Path, model: PreTrainedModel) -> frozenset[int]:
    """All tokens that end a text: in the generation settings, the model, or its tokenizer."""
    ids: set[int] = set()
    sources = [model.config.get_text_config().eos_token_id]
    if model.generation_config is not None:
        sources.append(model.generation_config.eos_token_id)
    for source in sources:
        ids.update([source] if isinstance(source, int) else source or [])
    file = folder / "tokenizer_config.json"
    if not ids and file.is_file():
        from transformers import AutoTokenizer

        if read_json_object(file).get("eos_token"):
            ids.add(AutoTokenizer.from_pretrained(folder, local_files_only=True).eos_token_id)
    return frozenset(ids)


def _mixing_layers(base: BaseModel) -> list[int]:
    """The indices of layers in which a token sees those before it."""
    kinds = getattr(base.model.config.get_text_config(), "layer_types", None)
    if not kinds:
        return list(range(base.layers))
    return [index for index, kind in enumerate(kinds) if kind not in ("moe", "mlp")]


def _refuse_unless_finite(model: PreTrainedModel, folder: Path) -> None:
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.itemsize > 1 and not weight.isfinite().all():
            raise Refused(
                f"the weights in {folder} are damaged: {name} holds NaN or infinity. Copy the "
                "model again."
            )


def _dense_cache_sizes(model: PreTrainedModel, dtype: torch.dtype) -> CacheSizes:
    """The sizes for a model where all layers have attention with heads of one size, no window."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    token_bytes = 2 * heads * size * dtype.itemsize
    return CacheSizes(tuple(range(layers)), (None,) * layers, (token_bytes,) * layers, 0)


@torch.no_grad()
def _measured_cache_sizes(base: BaseModel) -> CacheSizes:
    """What one token leaves behind."""
    packed = PackedDocuments([1], keep=True)
    token = torch.zeros(1, dtype=torch.long, device=base.device)
    with layers_seen() as seen:
        base.run(token, token, packed, None)
    assert packed.kept is not None and packed.states[0] is not None
    return CacheSizes(
        attention_layers=tuple(packed.attention_layers),
        windows=tuple(layer.window for layer in seen),
        token_bytes=tuple(key.nbytes + value.nbytes for key, value in packed.kept),
        per_row=packed.states[0].nbytes(),
    )


@torch.no_grad()
def _compare_decoding(base: BaseModel) -> float:
    """Check that rows which get one token at a time compute what a whole document computes.

    Returns:
        The largest relative difference of their logits.

    Raises:
        Refused: they do not.
    """
    generator = torch.Generator().manual_seed(0)
    lengths, before = (7, 12), (0, 5)  # tokens of each document, and those read before
    documents = [torch.randint(base.vocab_size, (n,), generator=generator) for n in lengths]
    sizes = base.cache
    cache = CachedRows(sizes.attention_layers, sizes.windows, len(documents), base.device)
    for row, (document, count) in enumerate(zip(documents, before, strict=True)):
        if not count:
            cache.put(row, 0, [], None)
            continue
        packed = PackedDocuments([count], keep=True)
        base.run(document[:count], torch.arange(count, device=base.device), packed, None)
        assert packed.kept is not None
        past = [(key[0], value[0]) for key, value in packed.kept]
        cache.put(row, count, [past], packed.states[0])
    decoded: list[torch.Tensor] = []
    for step in range(7):
        ids = [document[start + step] for document, start in zip(documents, before, strict=True)]
        cache.prepare(len(ids))
        tokens = torch.stack(ids)[:, None]
        hidden = base.run(tokens, cache.lengths[:, None], cache, None)
        decoded.append(base.logits(hidden, None))
        cache.advance()
    worst = 0.0
    for row, (document, start) in enumerate(zip(documents, before, strict=True)):
        whole = base.logits(base.hidden(document, [len(document)], None), None)[start : start + 7]
        ours = torch.stack([logits[row] for logits in decoded])
        worst = max(worst, ((ours - whole).norm() / whole.norm()).item())
    tolerance = 1e-3 if base.dtype == torch.float32 else 0.1
    if not worst <= tolerance:
        raise Refused(
            f"{base.name} ({base.arch}) computes something else when it reads one token at a time "
            f"than over a whole text (relative difference {worst:.1e}), so it cannot be sampled "
            "here; this architecture is not supported with transformers "
            f"{transformers.__version__}."
        )
    return worst


@torch.no_grad()
def _compare_with_plain(base: BaseModel) -> int:
    """Check that two packed documents give what transformers gives for each alone.

    This catches every architecture whose attention or output layer does something else. The
    documents may be shorter than its windows, so those are compared with its masks.

    Returns:
        The fewest tokens that a layer sees back, if the model limits them; otherwise 0.

    Raises:
        Refused: they do not.
    """
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(base.vocab_size, (n,), generator=generator) for n in (7, 12)]
    lengths = [len(document) for document in documents]
    packed = PackedDocuments(lengths)
    positions = torch.cat([torch.arange(n, device=base.device) for n in lengths])
    hidden = base.run(torch.cat(documents), positions, packed, None)
    ours = base.logits(hidden, None).split(lengths)
    base.model.set_attn_implementation("eager")
    try:
        theirs = [
            base.model(input_ids=document[None].to(base.device), use_cache=False).logits[0].float()
            for document in documents
        ]
    finally:
        base.model.set_attn_implementation(attention.NAME)
    tolerance = 1e-3 if base.dtype == torch.float32 else 0.1
    worst = max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True))
    _refuse_unless_finite(base.model, base.folder)
    calls = [*packed.attention_layers, *packed.state_layers]
    if not worst <= tolerance or sorted(calls) != _mixing_layers(base):
        raise Refused(
            f"{base.name} ({base.arch}) computes something that this engine does not reproduce "
            f"(relative difference {worst:.1e}); this architecture is not supported with "
            f"transformers {transformers.__version__}."
        )
    with layers_seen() as seen:  # of one document: its mask says nothing of packs
        base.hidden(documents[0], lengths[:1], None)
    for layer in seen:
        _check_mask(base, layer)
    return min((layer.window for layer in seen if layer.window is not None), default=0)


def _check_mask(base: BaseModel, layer: SeenLayer) -> None:
    """Compare what a layer sees with the mask that transformers would give it, at all distances.

    Raises:
        Refused: it is neither causal, nor the layer's window.
    """
    if layer.mask is None:
        return
    window = base.max_context if layer.window is None else layer.window
    near = [window * times + offset for times in (0, 1, 2, 3) for offset in (-1, 0, 1)]
    for query in {*near, base.max_context - 1} & set(range(base.max_context)):
        keys = torch.arange(query + 2, device=base.device)
        visible = layer.mask(0, 0, torch.tensor(query, device=base.device), keys)
        expected = (keys <= query) & (keys > query - window)
        if not torch.equal(visible.expand(keys.shape), expected):
            raise Refused(
                f"layer {layer.layer} of {base.name} ({base.arch}) lets a token see others than "
                "all before it, or than a window of the last ones; this architecture is not "
                "supported."
            )
