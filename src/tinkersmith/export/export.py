"""A checkpoint on a server -> a PEFT folder or a merged model, through the official SDK only.

The output folder appears as a whole or not at all.
"""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tinkersmith.data.large_files import iterate_samples
from tinkersmith.data.samples import Sample, Source, alpaca_sample
from tinkersmith.errors import UserError
from tinkersmith.export.adapter import LoraLayer, read_layers
from tinkersmith.export.base_folder import (
    BaseFolder,
    copy_tokenizer,
    read_base,
    read_model_json,
)
from tinkersmith.export.chat_template import write_chat_template
from tinkersmith.export.download import base_folder as find_base_folder
from tinkersmith.export.download import download_adapter, model_folder, open_state
from tinkersmith.export.merge import refuse_missing_weights, write_merged
from tinkersmith.export.model_card import loading_lines, model_card
from tinkersmith.export.peft_files import refused_by_peft, write_peft_adapter
from tinkersmith.export.targets.folder import (
    EXPORTS,
    check_export_folder,
    export_folder,
    interruption_told,
    not_written,
)
from tinkersmith.export.targets.vllm import vllm_section, vllm_serve
from tinkersmith.export.verify import Verification, verify_export
from tinkersmith.export.ways import export_ways
from tinkersmith.files import folder_beside, new_folder, write_atomically, write_json
from tinkersmith.models.names import local_model_folder
from tinkersmith.progress import watched
from tinkersmith.runs.provenance import labels_of
from tinkersmith.runs.trained_model import ModelReference, find_trained_model
from tinkersmith.service.connection import Service, open_service, server_lines
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.text.pieces import Rendered, UnusableSample

if TYPE_CHECKING:
    import tinker

    from tinkersmith.prompts.text_tokenizer import TextTokenizer
    from tinkersmith.text.templates import PromptTemplate

_FP32_ON_CPU = 600_000_000  # bytes of 16-bit weights up to which the engine computes in fp32
_VERIFIED_SAMPLES, _VERIFIED_TOKENS = 8, 256
_TRIED_SAMPLES = 100  # for those: a template refuses some


@dataclass(frozen=True, slots=True)
class Export:
    """What is exported, where to, and in which form."""

    model: ModelReference
    folder: Path
    merged: bool
    dtype: str  # "auto": the base model's


def export_model(
    settings: Settings | None = None,
    tinker_path: str = "",
    out: str | Path = "",
    merged: bool = False,
    *,
    checkpoint: str = "",
    base_model: str = "",
    model: ModelReference | None = None,
    base_folder: str | Path | None = None,
    force: bool = False,
    verify: bool | None = None,
    dtype: str = "auto",
    exports: str | Path = EXPORTS,
    before_merge: "Callable[[BaseFolder, PromptTemplate], None] | None" = None,
    when_verified: Callable[[str], None] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Download the LoRA at `tinker_path` (default: the newest run's best) and write it to `out`.

    Args:
        checkpoint: of the newest run: "best", "last" or a name; see `find_trained_model`.
        out: the folder to write; without it, one in `exports` that is named for the run.
        merged: write a full model instead of a PEFT adapter.
        base_model: the model that was trained on, for paths that no run folder knows.
        model: that of a caller which has found it; the other names of it are then left out.
        base_folder: the base model's folder; without it, it is looked for.
        force: replace an export that is there.
        verify: load the result with plain transformers (and peft) and compare log-probabilities;
            None does so where these can load it, and says it where they cannot.
        dtype: of a merged model: "float32", "bfloat16", or "auto" for that of the base model.
        before_merge: of a caller that turns the merged model into something else. It is called
            before anything is downloaded, and may refuse the model. The folder is not announced.
            The caller tells of interruptions and of what cannot be written.
        when_verified: called with what the verification found, if it passed.

    Raises:
        UserError: one sentence about what is wrong; `out` is then as it was before.
        OSError: with `before_merge`, a file cannot be written.
    """
    from tinkersmith.text.tokenizer import given_tokenizer_folder, load_tokenizer

    settings = settings or settings_from({})
    model = model or find_trained_model(settings, tinker_path, base_model, checkpoint)
    folder = Path(out) if out else export_folder(model, merged, exports)
    if base_folder and not (Path(base_folder).expanduser() / "config.json").is_file():
        raise UserError(
            f"{base_folder} is not a model folder: it has no config.json. Name another one with "
            "--base-folder."
        )
    check_export_folder(folder, force)
    no_peft = "" if merged or find_spec("peft") else "peft is not installed (pip install peft)"
    if verify and no_peft:
        raise UserError(f"--verify: {no_peft}. Install it, or leave the check out: --no-verify")
    # A hub that gives nothing is told before a server is asked for anything.
    with watched(say) as progress, progress.doing("looking for the base model's files"):
        own_files = model_folder(
            model.base_model,
            model.settings.tokenizer,
            base_folder,
            weights=merged,
            small_files_only=merged,  # the weights come when the server has the state
        )
    base = None  # of a merge with weights from the hub, which come later
    if not merged or base_folder or local_model_folder(model.base_model):
        base = read_base(own_files)
        if merged:
            refuse_missing_weights(base)
    export = Export(model, folder, merged, dtype)
    labels = labels_of(model.run.name) if model.run is not None else None
    told = nullcontext() if before_merge is not None else interruption_told(folder, say)
    opened = open_service(model.settings, base_model=model.base_model, labels=labels)
    with told, opened as service:
        say(f"Exporting {model.state_path} ({service.base_model})")
        if model.chosen:
            say(f"  {model.chosen}.")
        for line in server_lines(service, settings, of_run=model.run is not None):
            say(line)
        client = open_state(service, model)
        if base is None:
            base = read_base(find_base_folder(service, base_folder, weights=True))
        unverified = no_peft
        if base.missing and not merged and not unverified:
            unverified = f"the weights of the base model are not in {base.folder}"
            if verify:
                raise UserError(
                    f"--verify: {unverified}. Name another folder with --base-folder, or leave the "
                    "check out: --no-verify"
                )
        if unverified and verify is None:
            say(f"The adapter will not be verified: {unverified}.")
        given = model.settings.tokenizer
        tokenizer = load_tokenizer(given_tokenizer_folder(given) if given else base.folder)
        template = model.template(tokenizer)
        if before_merge is not None:
            before_merge(base, template)
        try:
            with folder_beside(folder) as downloaded:
                download_adapter(service, client, downloaded)
                with service.progress.doing("reading the LoRA"):
                    layers = read_layers(downloaded, base)
                if not merged and (refusal := refused_by_peft(layers, base)):
                    unverified = refusal
                    say(
                        f"{refusal}. The adapter is written for vLLM alone and is not verified. "
                        "Export a merged model with --merged."
                    )
            doing = "merging the LoRA into the model" if merged else "writing the adapter"
            with service.progress.doing(doing):
                _write(export, service, layers, base, template, tokenizer, force)
        except OSError as error:
            if before_merge is not None:
                raise  # the caller knows the folder that the user has named
            raise not_written(folder, error) from None
        if before_merge is None:
            what = "merged model" if merged else "adapter"
            say(f"Wrote the {what} to {folder} ({_size(folder)}). Load it with:")
            reference = None if merged else _base_reference(service, base)
            say("\n".join(f"  {line}" for line in loading_lines(folder, reference)))
            refused = "" if merged else _refused_by_vllm(layers, base, service.base_model)
            served = None if refused else vllm_serve(folder, folder, model.name, reference)
            if served:
                say(f"Or serve it: {served}")
        if verify is not False and not unverified:
            found = str(_verify(export, service, client, base, template, tokenizer))
            say(f"Verified: {found}")
            if when_verified is not None:
                when_verified(found)
    return folder


# ---- the files


def _write(
    export: Export,
    service: Service,
    layers: list[LoraLayer],
    base: BaseFolder,
    template: "PromptTemplate",
    tokenizer: "TextTokenizer",
    force: bool,
) -> None:
    model, reference = export.model, None
    inputs = frozenset(
        any(turn.input for turn in sample.turns) for sample in _trained_samples(model)
    )
    with new_folder(export.folder, overwrite=force) as folder:
        if export.merged:
            service.progress.say(f"Merged: {write_merged(layers, base, folder, export.dtype)}.")
            _stop_at_end_token(folder, template, tokenizer)
        else:
            reference = _base_reference(service, base)
            write_peft_adapter(layers, base, reference, folder)
            copy_tokenizer(base.folder, folder)
        write_json(folder / "prompt_template.json", template.to_json())
        has_chat = write_chat_template(template, folder)
        refusal = _refused_by_vllm(layers, base, service.base_model) if reference else ""
        card = model_card(
            model.name,
            model.state_path,
            service.base_model,
            reference,
            template,
            has_chat,
            inputs,
            vllm_section(folder, model.name, reference, template, refusal),
        )
        write_atomically(folder / "README.md", card)


def _refused_by_vllm(layers: list[LoraLayer], base: BaseFolder, base_model: str) -> str:
    """Why vLLM does not load the adapter; "" if it does, or if that was not tried."""
    trained = any(layer.path.endswith(("lm_head", "unembed_tokens")) for layer in layers)
    way = export_ways(base_model, base.folder, unembed=trained).vllm
    return way.note if way.works is False else ""


def _base_reference(service: Service, base: BaseFolder) -> str:
    """The base model reference stored for PEFT: a local folder, or else its name on the hub."""
    return str(base.folder) if local_model_folder(service.base_model) else service.base_model


def _stop_at_end_token(
    folder: Path, template: "PromptTemplate", tokenizer: "TextTokenizer"
) -> None:
    """Add the end token of the trained answers to those at which generation stops."""
    special = (token for token in tokenizer.special_tokens if template.end.endswith(token))
    end = next(special, tokenizer.eos_text)
    end_id = tokenizer.special_tokens[end]
    file = folder / "generation_config.json"
    values: dict[str, Any] = read_model_json(file) if file.is_file() else {}
    config = read_model_json(folder / "config.json")
    known: Any = values.get("eos_token_id", config.get("eos_token_id"))
    end_ids = cast(list[object], known) if isinstance(known, list) else [known]
    end_ids = [token for token in end_ids if token is not None]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in end_ids):
        raise UserError(
            f"The base model's eos_token_id is {known!r}; it must be a token's number or a list of "
            "them. Correct generation_config.json or config.json in its folder."
        )
    if end_id not in end_ids:
        write_json(file, {**values, "eos_token_id": [end_id, *end_ids]})


# ---- verification


def _verify(
    export: Export,
    service: Service,
    client: "tinker.TrainingClient",
    base: BaseFolder,
    template: "PromptTemplate",
    tokenizer: "TextTokenizer",
) -> Verification:
    import tinker
    import torch

    token_lists = _texts_to_verify(export.model, template, tokenizer)
    sampler = service.wait(client.save_weights_and_get_sampling_client(), "opening the weights")
    pending = [sampler.compute_logprobs(tinker.ModelInput.from_ints(ids)) for ids in token_lists]
    expected = [service.wait(future, "computing log-probabilities") for future in pending]
    size = sum(file.stat().st_size for file in base.folder.glob("*.safetensors"))
    engine_in_fp32 = (
        service.kind == "embedded" and not torch.cuda.is_available() and size <= _FP32_ON_CPU
    )
    same_weights = (
        not export.merged or export.dtype == "float32" or set(base.dtypes.values()) == {"F32"}
    )
    with service.progress.doing("verifying the export with transformers"):
        return verify_export(
            export.folder,
            token_lists,
            expected,
            base_folder=base.folder,
            exact=engine_in_fp32 and same_weights,
            rounded_to=_rounded_to(export, base) if engine_in_fp32 and not same_weights else "",
        )


def _rounded_to(export: Export, base: BaseFolder) -> str:
    """The precision of a merged model's weights; "" for one that was not simply rounded."""
    kinds = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    if export.dtype != "auto":
        return export.dtype
    stored = {kinds.get(kind, "") for kind in base.dtypes.values()} - {"float32"}
    return stored.pop() if len(stored) == 1 else ""


def _texts_to_verify(
    model: ModelReference, template: "PromptTemplate", tokenizer: "TextTokenizer"
) -> list[list[int]]:
    samples = [
        alpaca_sample(instruction="Say hello.", input="", output="Hello!", source=Source("", 1)),
        alpaca_sample(instruction="3 + 4 = ?", input="", output="Answer: 7", source=Source("", 2)),
    ]
    samples = [*_trained_samples(model), *samples]
    texts: list[Rendered] = []
    for sample in samples:
        with suppress(UnusableSample):  # training skipped it, too
            texts.append(template.render(sample))
        if len(texts) == _VERIFIED_SAMPLES:
            break
    rows = tokenizer.encode_batch([text.prompt + text.completion for text in texts])
    return [row[:_VERIFIED_TOKENS].tolist() for row in rows]


def _trained_samples(model: ModelReference) -> list[Sample]:
    """The first samples of the run's data; none where the run or its files are not here."""
    if model.run is not None:
        with suppress(UserError):  # the data files may have gone since
            settings = model.run.settings()
            trained = iterate_samples(settings.training_files, settings.columns, settings.encoding)
            return list(islice(trained, _TRIED_SAMPLES))
    return []


def _size(folder: Path) -> str:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
