"""A tinker:// path or a checkpoint of the newest run -> the trained model there and its run."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkersmith.errors import UserError
from tinkersmith.models.names import local_model_folder, resolve_base_model
from tinkersmith.runs.best import choose_checkpoint
from tinkersmith.runs.folder import Checkpoint, RunFolder, newest_run, run_of
from tinkersmith.settings.fields import Settings

if TYPE_CHECKING:
    from tinkersmith.prompts.text_tokenizer import TextTokenizer
    from tinkersmith.text.templates import PromptTemplate

TINKER_PATH = re.compile(r"tinker://([^/\s]+)/(weights|sampler_weights)/([^/\s]+)")
# BACKEND for a run that was trained there: "auto" must not depend on the keys that are set today.
_BACKENDS = {"embedded": "local", "cloud": "tinker", "url": "tinker"}


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A trained model on a server, and all that is needed to use it."""

    name: str  # of the run, or made from the path
    run: RunFolder | None  # None for a path that no run folder knows
    state_path: str
    sampler_path: str
    base_model: str
    settings: Settings  # those of the user, with the run's backend
    chosen: str = ""  # which checkpoint of the newest run it is, and why; "" for a path

    def template(self, tokenizer: "TextTokenizer") -> "PromptTemplate":
        """The run's prompt template; without a run, the one that the settings choose."""
        from tinkersmith.text.templates import choose_template

        if self.run is not None:
            return self.run.template()
        return choose_template(
            self.settings.prompt_template,
            tokenizer,
            self.base_model,
            thinking=self.settings.thinking,
        )


def find_trained_model(
    settings: Settings, tinker_path: str = "", base_model: str = "", checkpoint: str = ""
) -> ModelReference:
    """The model at `tinker_path`; without a path, a checkpoint of the newest run.

    Args:
        checkpoint: which one: "best", "last", a name such as step-000400, or "": the best where
            one was measured, else the last.

    Raises:
        UserError: the path is malformed, there is no run or no such checkpoint, or `base_model` is
            not the run's.
    """
    chosen = ""
    if tinker_path and checkpoint:
        raise UserError(
            f"The checkpoint {checkpoint!r} has no effect, since the model path names one "
            "already. Leave one of the two out."
        )
    if tinker_path:
        match = TINKER_PATH.fullmatch(tinker_path.strip())
        if match is None:
            raise UserError(
                f"{tinker_path!r} is not a path of trained weights. Such a path has the form "
                "tinker://RUN/sampler_weights/NAME; a run's checkpoints.jsonl lists its paths."
            )
        known = run_of(tinker_path.strip(), settings.output_dir)
        if known is None:
            run_id, _, name = match.groups()
            return ModelReference(
                name=re.sub(r"[^\w.-]+", "-", f"{run_id}-{name}"),
                run=None,
                state_path=f"tinker://{run_id}/weights/{name}",
                sampler_path=f"tinker://{run_id}/sampler_weights/{name}",
                base_model=resolve_base_model(base_model or settings.base_model)[0],
                settings=settings,
            )
        run, saved = known
    else:
        run = newest_run(settings.output_dir)
        saved, chosen = choose_checkpoint(run, checkpoint.strip())
    check_base_model(run, base_model)
    return model_of_run(run, saved, settings, chosen)


def check_base_model(run: RunFolder, base_model: str) -> None:
    """Refuse a base model that is not the run's; "" is any.

    Raises:
        UserError: it is another one.
    """
    trained_on = run.base_model()
    if base_model and trained_on not in (resolve_base_model(base_model)[0], _folder(base_model)):
        raise UserError(
            f"{run.name} was trained on {trained_on}, not on the base model {base_model}. Name no "
            "base model, or another trained model."
        )


def model_of_run(
    run: RunFolder, saved: Checkpoint, settings: Settings, chosen: str = ""
) -> ModelReference:
    """A checkpoint of a run, with the user's settings and the run's backend.

    Raises:
        UserError: the run's settings.json is damaged.
    """
    if settings.backend == "auto":
        settings = settings.model_copy(update={"backend": backend_of_run(run, settings)})
    if not settings.tokenizer and (recorded := run.settings().tokenizer):
        settings = settings.model_copy(update={"tokenizer": recorded})
    return ModelReference(
        name=run.name,
        run=run,
        state_path=saved.state_path,
        sampler_path=saved.sampler_path,
        base_model=run.base_model(),
        settings=settings,
        chosen=chosen,
    )


def backend_of_run(run: RunFolder, settings: Settings) -> str:
    """The BACKEND that reaches the server where a run's checkpoints are."""
    return _BACKENDS.get(run.facts().get("backend", ""), settings.backend)


def _folder(name: str) -> str | None:
    folder = local_model_folder(name)
    return str(folder) if folder else None
