"""tinker:// path, or nothing -> a trained model and what belongs to it: run, template, base."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkersmith.errors import UserError
from tinkersmith.models import local_model_folder, resolve_base_model
from tinkersmith.runs.folder import RunFolder, newest_run, run_of
from tinkersmith.settings import Settings

if TYPE_CHECKING:
    from tinkersmith.text.templates import PromptTemplate
    from tinkersmith.text.tokenizer import TextTokenizer

_PATH = re.compile(r"tinker://([^/\s]+)/(weights|sampler_weights)/([^/\s]+)")
# What "auto" must mean for a run that was trained there, whatever keys are set today.
_BACKENDS = {"embedded": "local", "cloud": "tinker", "url": "tinker"}


@dataclass(frozen=True, slots=True)
class TrainedModel:
    name: str  # of the run, or made from the path
    run: RunFolder | None  # None for a path that no run folder knows
    state_path: str
    sampler_path: str
    base_model: str
    settings: Settings  # to connect with: of the user, with the run's backend

    def template(self, tokenizer: "TextTokenizer") -> "PromptTemplate":
        """The run's own; without a run, the one that the settings mean."""
        from tinkersmith.text.templates import choose_template

        if self.run is not None:
            return self.run.template()
        return choose_template(self.settings.prompt_template, tokenizer, self.base_model)


def find_trained_model(
    settings: Settings, tinker_path: str = "", base_model: str = ""
) -> TrainedModel:
    """The model at `tinker_path`, or the newest run's last one.

    Raises:
        UserError: the path is none, there is no run, or `base_model` is not the run's.
    """
    if tinker_path:
        match = _PATH.fullmatch(tinker_path.strip())
        if match is None:
            raise UserError(
                f"{tinker_path!r} is not a path of trained weights; it looks like "
                "tinker://RUN/sampler_weights/NAME. A run's paths are in its checkpoints.jsonl."
            )
        found = run_of(tinker_path.strip(), settings.output_dir)
        if found is None:
            run_id, _, name = match.groups()
            return TrainedModel(
                name=re.sub(r"[^\w.-]+", "-", f"{run_id}-{name}"),
                run=None,
                state_path=f"tinker://{run_id}/weights/{name}",
                sampler_path=f"tinker://{run_id}/sampler_weights/{name}",
                base_model=resolve_base_model(base_model or settings.base_model)[0],
                settings=settings,
            )
        run, checkpoint = found
    else:
        run = newest_run(settings.output_dir)
        checkpoint = run.checkpoints()[-1]
    trained_on = run.base_model()
    if base_model and trained_on not in (resolve_base_model(base_model)[0], _folder(base_model)):
        raise UserError(
            f"{run.name} was trained on {trained_on}, not on BASE_MODEL {base_model}. Leave "
            "BASE_MODEL empty, or name another model path."
        )
    backend = _BACKENDS.get(run.facts().get("backend", ""), settings.backend)
    if settings.backend == "auto":
        settings = settings.model_copy(update={"backend": backend})
    return TrainedModel(
        name=run.name,
        run=run,
        state_path=checkpoint.state_path,
        sampler_path=checkpoint.sampler_path,
        base_model=trained_on,
        settings=settings,
    )


def _folder(name: str) -> str | None:
    folder = local_model_folder(name)
    return str(folder) if folder else None
