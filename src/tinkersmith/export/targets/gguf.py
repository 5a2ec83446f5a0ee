"""A checkpoint on a server -> a folder for llama.cpp and Ollama: a GGUF file and a Modelfile.

The LoRA is merged into the base model in a temporary folder, which is verified as every export is.
llama.cpp's converter then turns it into one file.
"""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from tinkersmith.data.large_files import iterate_samples
from tinkersmith.errors import UserError
from tinkersmith.export.base_folder import BaseFolder, read_model_json
from tinkersmith.export.export import export_model
from tinkersmith.export.targets.folder import (
    EXPORTS,
    check_export_folder,
    interruption_told,
    not_written,
)
from tinkersmith.export.targets.gguf_card import gguf_card, gguf_commands
from tinkersmith.export.targets.llama_cpp import (
    QUANTISED,
    LlamaCpp,
    find_llama_cpp,
    gguf_logprobs,
    has_llama_cpp_python,
)
from tinkersmith.export.targets.ollama import modelfile, ollama_template, stops_of
from tinkersmith.export.targets.pre_tokenizers import RULES, ids, matching_rule
from tinkersmith.files import folder_beside, new_folder, write_atomically, write_json
from tinkersmith.progress import Progress, watched
from tinkersmith.runs.trained_model import ModelReference, find_trained_model
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.text.pieces import UnusableSample
from tinkersmith.text.templates import PromptTemplate, template_from_json

_COMPARED_TEXTS = 1000  # of the training data, for a rule of llama.cpp that splits words alike
_LONGEST_CONTEXT = 8192  # tokens: what Ollama reserves memory for; the Modelfile can be changed
_CHECKED_SAMPLES, _CHECKED_TOKENS = 4, 256
# Mean differences of a log-probability that a type explains: more means a wrong file. They are at
# least twice those of the bundled model (`benchmarks/gguf.py`), as other models may differ more.
# Types of fewer bits have no limit, because they change a small model at will.
_ALLOWED = {"F32": 0.001, "F16": 0.02, "BF16": 0.1, "Q8_0": 0.2}


def export_gguf(
    settings: Settings | None = None,
    kind: str = "Q8_0",
    tinker_path: str = "",
    out: str | Path = "",
    *,
    llama_cpp: str | Path = "",
    checkpoint: str = "",
    base_model: str = "",
    model: ModelReference | None = None,
    base_folder: str | Path | None = None,
    force: bool = False,
    verify: bool | None = None,
    dtype: str = "auto",
    exports: str | Path = EXPORTS,
    when_verified: Callable[[str], None] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the model at `tinker_path` as a GGUF file of type `kind`, with a Modelfile.

    Args:
        llama_cpp: a checkout of llama.cpp; "" for that of LLAMA_CPP or an installed converter.
        dtype: of the merged model on the way; "auto" is float32.
        out, checkpoint, base_model, model, base_folder, force, verify, when_verified: as in
            `export_model`.

    Raises:
        UserError: one sentence about what is wrong; `out` is then as it was before.
    """
    tools = find_llama_cpp(kind, llama_cpp)
    settings = settings or settings_from({})
    model = model or find_trained_model(settings, tinker_path, base_model, checkpoint)
    folder = Path(out) if out else Path(exports) / f"{model.name}-gguf"
    check_export_folder(folder, force)
    dtype = "float32" if dtype == "auto" else dtype
    rule = ""

    def before_merge(base: BaseFolder, template: PromptTemplate) -> None:
        nonlocal rule
        rule = _checked(tools, base.folder, model, template, say)

    try:
        with interruption_told(folder, say), folder_beside(folder) as place:
            merged = place / "merged"
            export_model(
                settings,
                out=merged,
                merged=True,
                model=model,
                base_folder=base_folder,
                verify=verify,
                dtype=dtype,
                before_merge=before_merge,
                when_verified=when_verified,
                say=say,
            )
            template = template_from_json(read_model_json(merged / "prompt_template.json"))
            _stop_at_the_trained_end(merged, template)
            with watched(say) as progress, new_folder(folder, overwrite=force) as new:
                file = _write_file(tools, merged, new, model.name, rule, progress)
                checked = ""
                if verify is not False:
                    checked = _checked_by_llama_cpp(tools.kind, file, merged, template, progress)
                _write_rest(new, file.name, model, merged, template)
    except OSError as error:
        raise not_written(folder, error) from None
    if checked:
        say(checked)
    size = (folder / file.name).stat().st_size
    say(f"Wrote {file.name} ({size / 1e6:,.1f} MB) to {folder}. Use it with:")
    say("\n".join(f"  {line}" for line in gguf_commands(folder, file.name, model.name)))
    return folder


def _checked(
    tools: LlamaCpp,
    base: Path,
    model: ModelReference,
    template: PromptTemplate,
    say: Callable[[str], None],
) -> str:
    """Let the converter read the base model's configuration and tokenizer, before the merge.

    Returns:
        The name of the rule that splits words, for a tokenizer that the converter does not know.

    Raises:
        UserError: the converter refuses them.
    """
    rule = matching_rule(base, _training_texts(model, template))
    with tempfile.TemporaryDirectory() as place:
        try:
            reports = tools.convert(base, Path(place) / "vocabulary.gguf", rule, "--vocab-only")
        except UserError as error:
            unknown = "pre-tokenizer" in str(error)
            raise UserError(
                f"{str(error).rstrip('.')}. The model in {base} cannot become a GGUF file. "
                + (
                    "Its tokenizer splits words in a way that llama.cpp does not have (compared "
                    f"with {', '.join(RULES)})."
                    if unknown
                    else "A newer llama.cpp may know it: --llama-cpp FOLDER"
                )
            ) from None
    if reports:
        say(
            f"  llama.cpp's converter does not know the tokenizer. Its rule {rule!r} splits words "
            "alike: the tokens of the training texts are the same."
        )
    return rule


def _training_texts(model: ModelReference, template: PromptTemplate) -> list[str]:
    texts: list[str] = []
    if model.run is None:
        return texts
    with suppress(UserError):  # the data files may have gone since
        settings = model.run.settings()
        samples = iterate_samples(settings.training_files, settings.columns, settings.encoding)
        for sample in islice(samples, _COMPARED_TEXTS):
            with suppress(UnusableSample):  # training skipped it, too
                rendered = template.render(sample)
                texts.append(rendered.prompt + rendered.completion)
    return texts


def _write_file(
    tools: LlamaCpp, merged: Path, folder: Path, name: str, rule: str, progress: Progress
) -> Path:
    file = folder / f"{name}-{tools.kind}.gguf"
    if tools.kind not in QUANTISED:
        with progress.doing("converting the model by llama.cpp"):
            tools.convert(merged, file, rule, "--model-name", name)
        return file
    with tempfile.TemporaryDirectory(dir=merged.parent) as place:
        source = Path(place) / "f16.gguf"
        with progress.doing("converting the model by llama.cpp"):
            tools.convert(merged, source, rule, "--model-name", name)
        with progress.doing(f"quantising the model to {tools.kind} by llama.cpp"):
            tools.quantise(source, file)
    return file


def _stop_at_the_trained_end(merged: Path, template: PromptTemplate) -> None:
    """Make the end token of the trained answers the one at which llama.cpp stops."""
    file = merged / "tokenizer_config.json"
    end = template.end.strip()
    if not file.is_file() or end not in template.special_tokens:
        return
    values = read_model_json(file)
    write_json(file, {**values, "eos_token": end})


def _checked_by_llama_cpp(
    kind: str, file: Path, merged: Path, template: PromptTemplate, progress: Progress
) -> str:
    """Compare llama.cpp's log-probabilities with those of transformers.

    Raises:
        UserError: they differ by more than the type explains.
    """
    from tokenizers import Tokenizer

    from tinkersmith.export.verify import logprobs_of_folder

    if not has_llama_cpp_python():
        return (
            "The merged model was verified, and the GGUF file was not loaded: that needs "
            "llama-cpp-python. Compare a server with --prove URL."
        )
    tokenizer: Any = Tokenizer.from_file(str(merged / "tokenizer.json"))
    token_lists = [ids(tokenizer, text)[:_CHECKED_TOKENS] for text in _texts_to_check(template)]
    with progress.doing("comparing llama.cpp with transformers"):
        theirs = gguf_logprobs(file, token_lists)
        ours = logprobs_of_folder(merged, token_lists)
    pairs = [pair for lists in zip(theirs, ours, strict=True) for pair in zip(*lists, strict=True)]
    differences = [abs(a - b) for a, b in pairs]
    mean = sum(differences) / len(differences)
    found = f"at most {max(differences):.2g} (mean {mean:.2g}) over {len(differences)} tokens"
    limit = _ALLOWED.get(kind)
    if limit is not None and not mean <= limit:
        raise UserError(
            f"llama.cpp's log-probabilities differ from the model's by {found}; {kind} explains a "
            f"mean of {limit}. The GGUF file is not the trained model. Nothing was written."
        )
    return f"Verified: llama.cpp loads it; its log-probabilities differ by {found}."


def _texts_to_check(template: PromptTemplate) -> list[str]:
    from tinkersmith.data.samples import Source, alpaca_sample

    questions = (("3 + 4 = ?", "", "Answer: 7"), ("Add.", "12 and 30", "Answer: 42"))
    samples = [alpaca_sample(*texts, Source("", 1)) for texts in questions]
    rendered = [template.render(sample) for sample in samples[:_CHECKED_SAMPLES]]
    return [text.prompt + text.completion for text in rendered]


def _write_rest(
    folder: Path, file: str, model: ModelReference, merged: Path, template: PromptTemplate
) -> None:
    """The Modelfile, the README, and what the merged model says of its prompts."""
    settings = model.settings
    config = read_model_json(merged / "config.json")
    context = config.get("max_position_embeddings") or _LONGEST_CONTEXT
    parameters = {
        "num_ctx": min(int(context), _LONGEST_CONTEXT),
        "num_predict": settings.sampling_max_tokens,
        "temperature": settings.sampling_temperature,
        # Ollama's own defaults cut unlikely tokens and punish repeated ones. Training did neither.
        "top_k": 0,
        "top_p": 1,
        "repeat_penalty": 1,
    }
    text = modelfile(file, template, stops_of(template), parameters)
    write_atomically(folder / "Modelfile", text)
    for name in ("prompt_template.json", "chat_template.jinja"):
        if (merged / name).is_file():
            shutil.copyfile(merged / name, folder / name)
    has_chat = (merged / "chat_template.jinja").is_file()
    card = gguf_card(model, file, template, has_chat, ollama_template(template) is not None)
    write_atomically(folder / "README.md", card)
