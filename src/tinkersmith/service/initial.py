"""The weights that a run begins with: a new LoRA, or those that INITIAL_CHECKPOINT names."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import read_json_object
from tinkersmith.fingerprint import (
    DamagedWeights,
    safetensors_header,
    text_config,
    weight_files,
)
from tinkersmith.models.names import local_model_folder
from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tinkersmith.runs.best import choose_checkpoint
from tinkersmith.runs.folder import Checkpoint, RunFolder, open_run, run_of
from tinkersmith.runs.trained_model import TINKER_PATH
from tinkersmith.settings.fields import Settings

if TYPE_CHECKING:
    from tinkersmith.text.templates import PromptTemplate

ADAPTER_NAME = "initial"  # what our own engine calls the folder of an exported adapter
# What the names of an adapter's tensors have in the parts of a model, as far as families agree.
_PARTS = {
    "attention": re.compile(r"\.(?:self_attn|linear_attn|attn)\."),
    "MLPs": re.compile(r"\.(?:mlp|experts|shared_experts?|feed_forward)\."),
    "the output layer": re.compile(r"\b(?:lm_head|unembed_tokens)\."),
}


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """Trained weights that another training starts from."""

    path: str  # of a state, or ADAPTER_NAME
    about: str  # which they are, for the user
    optimizer: bool = False  # whether its optimizer's state is taken over, too
    adapter: Path | None = None  # the folder of an exported adapter
    run: RunFolder | None = None  # which trained them, if its folder is known


def initial_weights(settings: Settings) -> InitialWeights | None:
    """What INITIAL_CHECKPOINT names; None if it names nothing, and a new LoRA is trained.

    Raises:
        UserError: there is no such run or adapter, the state of its checkpoint was deleted, or the
            new LoRA would have no layers.
    """
    name = settings.initial_checkpoint.strip()
    if not name:
        _refuse_no_layers(settings)
        return None
    if name.startswith("tinker://"):
        if not TINKER_PATH.fullmatch(name):
            raise UserError(
                f"INITIAL_CHECKPOINT is {name}, which is no path of a state. It looks like "
                "tinker://RUN/weights/NAME, as the end of a run prints it."
            )
        known = run_of(name, settings.output_dir)
        if known is None:
            return InitialWeights(name, name, settings.initial_optimizer)
        run, saved = known
        about = f"{saved.name} of {run.name}"
    elif (Path(name).expanduser() / ADAPTER_CONFIG).is_file():
        return _exported(Path(name).expanduser().resolve(), settings)
    elif (Path(name).expanduser() / "config.json").is_file():
        raise UserError(
            f"INITIAL_CHECKPOINT is {name}, a full model and no adapter. To train on from it, name "
            "it as BASE_MODEL, and remove INITIAL_CHECKPOINT."
        )
    else:
        run = _named_run(name, settings)
        if not run.checkpoints():
            raise UserError(
                f"INITIAL_CHECKPOINT names {run.name}, which has no checkpoint. Name another run."
            )
        saved, about = choose_checkpoint(run, "")
    _refuse_deleted(run, saved)
    return InitialWeights(saved.state_path, about, settings.initial_optimizer, run=run)


def _refuse_no_layers(settings: Settings) -> None:
    """Refuse a new LoRA on the output layer alone where "auto" leaves that layer out."""
    if settings.train_attn or settings.train_mlp:
        return
    trained, reason = trains_output_layer(settings, settings.base_model)
    if not trained:
        raise UserError(
            f"TRAIN_ATTN and TRAIN_MLP are False, so nothing would train. {reason} Or set "
            "TRAIN_ATTN or TRAIN_MLP to True."
        )


def _named_run(name: str, settings: Settings) -> RunFolder:
    try:
        return open_run(name, settings.output_dir)
    except UserError as error:
        raise UserError(
            f"INITIAL_CHECKPOINT is {name}, which is no run, no tinker:// path and no folder with "
            f"{ADAPTER_CONFIG}. {error}"
        ) from None


def _refuse_deleted(run: RunFolder, saved: Checkpoint) -> None:
    if not saved.state_deleted:
        return
    left = [point.state_path for point in run.checkpoints() if not point.state_deleted]
    raise UserError(
        f"INITIAL_CHECKPOINT: the state of {saved.name} of {run.name} was deleted to save space "
        f"(KEEP_LAST). " + (f"Name another: {left[-1]}" if left else "That run has no other.")
    )


def _exported(folder: Path, settings: Settings) -> InitialWeights:
    if settings.initial_optimizer:
        raise UserError(
            f"INITIAL_CHECKPOINT is {folder}, an exported adapter, which holds no optimizer's "
            "state. Remove INITIAL_OPTIMIZER, or name the run that trained it."
        )
    rank = _rank_of(folder / ADAPTER_CONFIG)
    if rank > settings.lora_rank:
        raise UserError(
            f"INITIAL_CHECKPOINT is {folder}, an exported adapter of rank {rank}, and LORA_RANK is "
            f"{settings.lora_rank}. Set LORA_RANK = {rank} or higher."
        )
    _check_tensors(folder, settings)
    return InitialWeights(ADAPTER_NAME, f"the exported adapter in {folder}", adapter=folder)


def _check_tensors(folder: Path, settings: Settings) -> None:
    """Refuse a damaged adapter, and weights that the settings do not train.

    Which layers there are, the engine says when it has read them.
    """
    file = folder / ADAPTER_WEIGHTS
    try:
        names = list(safetensors_header(file))
    except DamagedWeights as error:
        raise UserError(f"{error.reason}. Export the adapter again.") from None
    except OSError as error:
        raise unreadable(file, error) from None
    for part, is_trained, setting in (
        ("attention", settings.train_attn, "TRAIN_ATTN = True"),
        ("MLPs", settings.train_mlp, "TRAIN_MLP = True"),
        (
            "the output layer",
            trains_output_layer(settings, settings.base_model)[0],
            'TRAIN_UNEMBED = "yes"',
        ),
    ):
        if not is_trained and any(_PARTS[part].search(name) for name in names):
            raise UserError(
                f"INITIAL_CHECKPOINT is {folder}, an exported adapter with weights for {part}, "
                f"which the settings do not train. Set {setting}."
            )


def _rank_of(file: Path) -> int:
    """The lowest rank that an adapter_config.json names; 0 where it is damaged.

    Joined projections have the sum of their parts' ranks there: whether all parts fit, the engine
    says when it has read them.
    """
    try:
        config = read_json_object(file)
    except OSError as error:
        raise unreadable(file, error) from None
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}. Export the adapter again.") from None
    patterns: object = config.get("rank_pattern")
    more = cast("dict[str, object]", patterns).values() if isinstance(patterns, dict) else ()
    return min((rank for rank in (config.get("r"), *more) if isinstance(rank, int)), default=0)


def refuse_adapter(weights: InitialWeights | None, kind: str) -> None:
    """Refuse to start from an exported adapter anywhere but on this machine.

    Args:
        kind: of the server, as `server_of` has it.

    Raises:
        UserError: the server takes no adapters.
    """
    if weights is not None and weights.adapter is not None and kind != "embedded":
        raise UserError(
            f"INITIAL_CHECKPOINT names {weights.about}, which only training on this machine can "
            "start from: a server takes no adapters. Name a tinker:// path of its own, or set "
            'BACKEND = "local".'
        )


def adapter_options(weights: InitialWeights | None, base_model: str) -> list[str]:
    """What our own engine is started with, so that it offers an exported adapter.

    Args:
        base_model: the adapter's base model, as the engine calls it.
    """
    if weights is None or weights.adapter is None:
        return []
    return [
        *("--adapter", f"{ADAPTER_NAME}={weights.adapter}"),
        *("--adapter-base", f"{ADAPTER_NAME}={base_model}"),
    ]


def trains_output_layer(settings: Settings, base_model: str) -> tuple[bool, str]:
    """Whether a new LoRA is trained on the output layer, and a line that says why.

    The line is "" where the user decided. An output layer that is the input embedding is left
    alone by "auto": llama.cpp and others cannot load a LoRA on it.
    """
    if settings.train_unembed != "auto":
        return settings.train_unembed == "yes", ""
    folder = local_model_folder(base_model)
    if folder is not None and shares_embedding(folder):
        return False, (
            f"The output layer of {base_model} is its input embedding, and is not trained: few "
            'programs load such an adapter. TRAIN_UNEMBED = "yes" trains it.'
        )
    return True, ""


def lora_options(settings: Settings, base_model: str) -> dict[str, Any]:
    """What the SDK is given to create a new LoRA, beside the optimizer and the metadata."""
    train_unembed, _ = trains_output_layer(settings, base_model)
    return {
        "base_model": base_model,
        "rank": settings.lora_rank,
        "seed": settings.seed,
        "train_attn": settings.train_attn,
        "train_mlp": settings.train_mlp,
        "train_unembed": train_unembed,
    }


def creation_of(
    settings: Settings, base_model: str, weights: InitialWeights | None, state: str = ""
) -> dict[str, Any]:
    """All that decides which training client is made: a new LoRA, or the weights it starts from.

    Args:
        state: the path of a saved state to start from instead of `weights`.
    """
    options = {**lora_options(settings, base_model), "optimizer": settings.optimizer}
    if state:
        return {**options, "from": state, "with_optimizer": False}
    if weights is None:
        return options
    place = weights.path if weights.adapter is None else str(weights.adapter)
    return {**options, "from": place, "with_optimizer": weights.optimizer}


def will_train_output_layer(settings: Settings, base_model: str) -> bool:
    """Whether a run trains the output layer: a state to start from decides, if its run is known."""
    if settings.train_unembed == "auto":
        with suppress(UserError):  # said where the run begins
            weights = initial_weights(settings)
            if weights is not None and weights.run is not None:
                return will_train_output_layer(weights.run.settings(), base_model)
    return trains_output_layer(settings, base_model)[0]


def shares_embedding(folder: Path) -> bool:
    """Whether the output layer of the model in this folder is its input embedding."""
    config = read_json_object(folder / "config.json")
    for part in (config, text_config(config)):
        if "tie_word_embeddings" in part:
            return bool(part["tie_word_embeddings"])
    return not any(name.endswith("lm_head.weight") for name in weight_files(folder)[0])


def check_initial_weights(
    info: Any, weights: InitialWeights, settings: Settings, base_model: str
) -> None:
    """Compare what the server says of a state with the settings, which cannot change it.

    Args:
        info: the server's answer about the state's weights, a `tinker.types.WeightsInfoResponse`.

    Raises:
        UserError: the base model, the rank or the trained layers are others.
    """
    if info.base_model != base_model:
        raise UserError(
            f"INITIAL_CHECKPOINT ({weights.about}) was trained on {info.base_model}, and "
            f"BASE_MODEL is {base_model}. Set BASE_MODEL to the former."
        )
    if info.lora_rank is not None and info.lora_rank != settings.lora_rank:
        raise UserError(
            f"INITIAL_CHECKPOINT ({weights.about}) has rank {info.lora_rank}, and LORA_RANK is "
            f"{settings.lora_rank}, which cannot change it. Set LORA_RANK = {info.lora_rank}."
        )
    kind = info.optimizer_config.type
    if weights.optimizer and kind != settings.optimizer:
        raise UserError(
            f"INITIAL_OPTIMIZER is True, and INITIAL_CHECKPOINT ({weights.about}) was trained with "
            f'OPTIMIZER = "{kind}", not "{settings.optimizer}". Set OPTIMIZER to the former.'
        )
    for name in ("train_attn", "train_mlp", "train_unembed"):
        has: bool | None = getattr(info, name)
        wants: object = getattr(settings, name)
        if has is None or wants == "auto" or has == (wants in (True, "yes")):
            continue
        value = ('"yes"' if has else '"no"') if name == "train_unembed" else has
        raise UserError(
            f"INITIAL_CHECKPOINT ({weights.about}) was trained with {name.upper()} = {value}, "
            f"which cannot change. Set {name.upper()} = {value}."
        )


def template_line(weights: InitialWeights | None, template: "PromptTemplate") -> str:
    """A warning where the earlier training used another prompt template; else ""."""
    if weights is None or weights.run is None:
        return ""
    before = weights.run.template()
    if before.to_json() == template.to_json():
        return ""
    return (
        f"Warning: {weights.run.name} was trained with the prompt template {before.name}, and this "
        f"run uses {template.name}. Set PROMPT_TEMPLATE to the former, or the model has to learn "
        "the new one."
    )
