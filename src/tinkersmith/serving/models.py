"""Runs, tinker:// paths and exported folders -> the models to serve, each with its prompt form.

All of them have one base model, which is served as well.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import LARGEST_JSON_FILE, read_json_object, read_regular
from tinkersmith.models.hub import cached_tokenizer_folder
from tinkersmith.models.names import local_model_folder, resolve_base_model
from tinkersmith.peft_format import ADAPTER_CONFIG
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.runs.best import choose_checkpoint
from tinkersmith.runs.folder import newest_run, open_run
from tinkersmith.runs.trained_model import (
    ModelReference,
    check_base_model,
    find_trained_model,
    model_of_run,
)
from tinkersmith.service.connection import server_of
from tinkersmith.settings.fields import Settings
from tinkersmith.text.jinja_template import chat_template_of, takes_input
from tinkersmith.text.templates import PromptTemplate, TextTemplate, template_from_json

_NAMED = re.compile(r"([\w.:-]{1,100})=(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as clients see it, and what the server behind knows it as."""

    name: str
    upstream: str  # the name there: a base model's, or a tinker:// path
    kind: str  # "base" | "tuned"
    base: str  # the name of the base model, as it is served
    about: str  # where it comes from, for the user
    template: PromptTemplate | None = None  # that of training; None: the model's own
    chat_template: str | None = None  # the Jinja of `template`; None where it has none
    adapter: Path | None = None  # an exported adapter that the engine loads from its folder

    @property
    def has_input(self) -> bool:
        """Whether a message of the user may have an `input`, for which the template has a place."""
        template, jinja = self.template, self.chat_template
        if not isinstance(template, TextTemplate) or "{input}" not in template.format:
            return False
        return jinja is None or takes_input(jinja)  # an old export's chat template does not

    @property
    def has_own_thoughts(self) -> bool:
        """Whether it writes thoughts that its template does not tell apart."""
        template = self.template
        return (
            template is not None
            and template.to_json()["kind"] == "text"
            and (template.keeps_thoughts)
        )


@dataclass(frozen=True, slots=True)
class ServedModels:
    """What to serve, and where: the tuned models first, then their base model."""

    models: tuple[ServedModel, ...]
    base_model: str  # a bundled model, a folder, or a name that only a server knows
    settings: Settings  # the user's, with the backend and OUTPUT_DIR of the runs

    def named(self, name: str) -> ServedModel | None:
        """The model that clients call `name`."""
        return next((model for model in self.models if model.name == name), None)

    @property
    def base_name(self) -> str:
        return self.models[-1].base


@dataclass(frozen=True, slots=True)
class _Found:
    """A model before its base model has a name."""

    name: str
    upstream: str
    base_model: str
    about: str
    settings: Settings
    template: PromptTemplate | None = None
    chat_template: str | None = None
    adapter: Path | None = None
    is_whole: bool = False  # a full model: it is its own base model


def models_to_serve(
    paths: Sequence[str], settings: Settings, checkpoint: str = "", base_model: str = ""
) -> ServedModels:
    """The models at `paths`; without any, the newest run.

    Args:
        paths: each a run's name or folder, a tinker:// path, an exported adapter's or model's
            folder, or NAME=PATH, which gives it that name.
        checkpoint: of runs: "best", "last", a name, or "": the best where one was measured.
        base_model: that of paths and adapters which do not say it.

    Raises:
        UserError: there is no such model, two have the same name, or they have different bases.
    """
    found = [_find(path, settings, checkpoint, base_model) for path in paths or [""]]
    if checkpoint and not any(model.about.startswith("checkpoint ") for model in found):
        raise UserError(
            f"--checkpoint {checkpoint} has no effect: only runs have checkpoints. Leave it out."
        )
    first = found[0]
    for other in found[1:]:
        if other.base_model != first.base_model:
            raise UserError(
                f"{first.name} has the base model {first.base_model}, and {other.name} has "
                f"{other.base_model}. Models of one base are served together; serve the others by "
                "a command of their own."
            )
    _check_places(found)
    base = _base_name(first)
    served = [
        ServedModel(
            name=model.name,
            upstream=model.upstream,
            kind="tuned",
            base=base,
            about=model.about,
            template=model.template,
            chat_template=model.chat_template,
            adapter=model.adapter,
        )
        for model in found
    ]
    if not first.is_whole:
        served.append(_base(base, first, served[0]))
    for number, model in enumerate(served):
        if any(model.name == other.name for other in served[:number]):
            raise UserError(
                f"Two models have the name {model.name}. Give one of them another: NAME=PATH."
            )
    stored = next((model for model in found if model.adapter is None), first)
    return ServedModels(tuple(served), first.base_model, stored.settings)


def _check_places(found: Sequence[_Found]) -> None:
    """Refuse models that no one server has. Our own engine loads folders beside its checkpoints.

    Raises:
        UserError: two are stored on different servers.
    """
    before: tuple[str, tuple[str, str]] | None = None
    for model in found:
        kind, url, _ = server_of(model.settings)
        if kind == "embedded" and (model.adapter is None and not model.is_whole):
            url = str(Path(model.settings.output_dir).resolve())
        if before is not None and before[1] != (kind, url):
            if kind == before[1][0] == "embedded" and "" in (url, before[1][1]):
                url = url or before[1][1]
            else:
                raise UserError(
                    f"{before[0]} and {model.name} are stored on different servers. Serve them by "
                    "two commands, or export them and name the folders."
                )
        before = (model.name, (kind, url))


def _find(path: str, settings: Settings, checkpoint: str, base_model: str) -> _Found:
    match = _NAMED.fullmatch(path)
    if match is not None and not Path(path).exists():
        return replace(_find(match[2], settings, checkpoint, base_model), name=match[1])
    if path.startswith("tinker://"):
        return _of_reference(find_trained_model(settings, path, base_model), path)
    folder = Path(path).expanduser() if path else None
    if path in BUNDLED_MODELS:
        _refuse_base_of_whole(path, path, base_model)
        return _whole_model(path, path, settings, BUNDLED_MODELS[path])
    if folder is not None and (folder / ADAPTER_CONFIG).is_file():
        return _adapter(folder.resolve(), settings, base_model)
    if folder is not None and (folder / "config.json").is_file():
        folder = folder.resolve()
        _refuse_base_of_whole(path, str(folder), base_model)
        return _whole_model(folder.name, str(folder), settings, folder)
    run = open_run(path, settings.output_dir) if path else newest_run(settings.output_dir)
    if not run.checkpoints():
        raise UserError(f"{run.name} has no checkpoint yet. Wait for its first, or name another.")
    check_base_model(run, base_model)
    saved, chosen = choose_checkpoint(run, checkpoint.strip())
    model = model_of_run(run, saved, settings, chosen)
    stored = settings.model_copy(
        update={"backend": model.settings.backend, "output_dir": str(run.path.parent)}
    )
    return _of_reference(replace(model, settings=stored), f"checkpoint {chosen}")


def _refuse_base_of_whole(path: str, name: str, base_model: str) -> None:
    """Refuse a base model beside a full model, unless an adapter served with it needs it."""
    if base_model and _resolved(base_model) != name:
        raise UserError(
            f"{path} is a full model, and needs no base model. Leave --base-model {base_model} out."
        )


def _of_reference(model: ModelReference, about: str) -> _Found:
    template = model.run.template() if model.run is not None else _settings_template(model)
    return _Found(
        name=model.name,
        upstream=model.sampler_path,
        base_model=_resolved(model.base_model),
        about=about,
        settings=model.settings,
        template=template,
        chat_template=chat_template_of(template) if template is not None else None,
    )


def _settings_template(model: ModelReference) -> PromptTemplate | None:
    """The template that the settings choose; None if the base model's tokenizer is not here."""
    tokenizer = _tokenizer_here(model.settings, model.base_model)
    return None if tokenizer is None else model.template(tokenizer)


def _tokenizer_here(settings: Settings, base_model: str) -> TextTokenizer | None:
    """The tokenizer in TOKENIZER or in the base model's folder; None where it is not here."""
    from tinkersmith.text.tokenizer import given_tokenizer_folder, load_tokenizer

    if settings.tokenizer:
        return load_tokenizer(given_tokenizer_folder(settings.tokenizer))
    folder = folder_on_this_machine(base_model)
    return None if folder is None else load_tokenizer(folder)


def folder_on_this_machine(base_model: str) -> Path | None:
    """The folder of a base model on this machine, the Hub's cache included."""
    if (folder := local_model_folder(base_model)) is not None:
        return folder
    try:
        return cached_tokenizer_folder(base_model)
    except UserError:  # no name of the Hub, but one that a server may know
        return None


def _whole_model(name: str, upstream: str, settings: Settings, folder: Path) -> _Found:
    local = settings.model_copy(update={"backend": "local"})
    template, jinja = _stored_template(folder)
    return _Found(
        name=name,
        upstream=upstream,
        base_model=upstream,
        about=str(folder),
        settings=local,
        template=template,
        chat_template=jinja,
        is_whole=True,
    )


def _adapter(folder: Path, settings: Settings, base_model: str) -> _Found:
    file = folder / ADAPTER_CONFIG
    try:
        config: dict[str, Any] = read_json_object(file)
    except OSError as error:
        raise unreadable(file, error) from None
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}. Export the adapter again.") from None
    trained_on = base_model or config.get("base_model_name_or_path")
    if not isinstance(trained_on, str) or not trained_on:
        raise UserError(f"{file} names no base model. Name it with --base-model.")
    try:
        resolved = _resolved(trained_on)
    except UserError:
        raise UserError(
            f"The adapter in {folder} was trained on {trained_on}, which is not there. Name the "
            "base model's folder with --base-model."
        ) from None
    template, jinja = _stored_template(folder)
    return _Found(
        name=folder.name,
        upstream=folder.name,
        base_model=resolved,
        about=str(folder),
        settings=settings.model_copy(update={"backend": "local"}),
        template=template,
        chat_template=jinja,
        adapter=folder,
    )


def _stored_template(folder: Path) -> tuple[PromptTemplate | None, str | None]:
    """The prompt template of an exported folder, and its Jinja, as far as they are there."""
    template = jinja = None
    file = folder / "prompt_template.json"
    try:
        template = template_from_json(read_json_object(file))
    except FileNotFoundError:  # another program wrote the folder
        pass
    except OSError as error:
        raise unreadable(file, error) from None
    except (ValueError, UserError) as error:
        raise UserError(f"{file} is damaged: {error}. Export the model again.") from None
    file = folder / "chat_template.jinja"
    try:
        jinja = read_regular(file, LARGEST_JSON_FILE).decode("utf-8")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise unreadable(file, error) from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8. Export the model again.") from None
    return template, jinja


def _resolved(base_model: str) -> str:
    """A base model's name in the one form that two of them can be compared by.

    Raises:
        UserError: it is a folder that is not there.
    """
    name, _ = resolve_base_model(base_model)
    if name in BUNDLED_MODELS:
        return name
    for bundled, place in BUNDLED_MODELS.items():  # exports name the folder, perhaps a moved one
        if Path(name).name == place.name and Path(name).parent.name == place.parent.name:
            return bundled
    folder = local_model_folder(name)
    return str(folder) if folder is not None else name


def _base_name(model: _Found) -> str:
    if model.is_whole:
        return model.name
    folder = Path(model.base_model)
    return folder.name if folder.is_absolute() else model.base_model


def _base(name: str, found: _Found, tuned: ServedModel) -> ServedModel:
    """The base model, asked by its own chat template, or else by that of the tuned model."""
    tokenizer = _tokenizer_here(found.settings, found.base_model)
    own = tokenizer is None or tokenizer.chat_template is not None
    return ServedModel(
        name=name,
        upstream=found.base_model,
        kind="base",
        base=name,
        about="the base model" if own else f"the base model, asked as {tuned.name} is",
        template=None if own else tuned.template,
        chat_template=None if own else tuned.chat_template,
    )
