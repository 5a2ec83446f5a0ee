"""What a run was computed with -> a record in settings.json, and the differences at a resume.

Some differences can change the last bits of a sum: they are said. Others make the continued run
senseless, such as another base model: they are refused.
"""

import datetime as dt
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, cast

from tinkersmith.files import write_json
from tinkersmith.runs.folder import RunFolder
from tinkersmith.settings.fields import Settings
from tinkersmith.version import __version__

_PACKAGES = ("torch", "tinker", "transformers", "tokenizers", "numpy")
_SENSE = {  # of these facts: what a run cannot be continued without
    "base_fingerprint": "the weights of the base model",
    "tokenizer_digest": "the tokenizer",
    "template_digest": "the prompt template",
    "data_digest": "the training data",
    "questions_digest": "the questions of EVAL_FILES",
}
_SENSE_SETTINGS = ("LORA_RANK", "BATCH_SIZE", "SEED")
RUN_LABEL = "tinkersmith.run"
_UNIMPORTANT_SETTINGS = ("OUTPUT_DIR", "BACKEND", "TRACKERS")


@dataclass(frozen=True, slots=True)
class Standing:
    """What one process of a run stands on."""

    base_fingerprint: str | None  # None where the model's files are not on this machine
    tokenizer_digest: str
    template_digest: str
    data_digest: str
    server: Mapping[str, Any]  # what the engine computes with; {} in the cloud
    questions_digest: str | None = None  # None where no questions are asked during training

    def facts(self) -> dict[str, Any]:
        """The facts that must be the same in each process of a run."""
        return {name: getattr(self, name) for name in _SENSE}


@dataclass(slots=True)
class Differences:
    """What is not as it was when the run was last worked on, each a sentence without its dot."""

    said: list[str] = field(default_factory=list[str])
    refused: list[str] = field(default_factory=list[str])


def digest_of(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def labels_of(run: str, settings: Settings | None = None, data_digest: str = "") -> dict[str, str]:
    """What a run's sessions, training clients and checkpoints are marked with on the server.

    A session and a training client are made before the data is tokenised, and have no digest of it.
    """
    labels = {RUN_LABEL: run}
    if settings is not None:
        values = json.dumps(settings.model_dump(mode="json"), sort_keys=True)
        labels["tinkersmith.settings"] = digest_of(values)
    if data_digest:
        labels["tinkersmith.data"] = data_digest
    return labels


def session(standing: Standing, settings: Mapping[str, Any], first_step: int) -> dict[str, Any]:
    """The record of one process: versions, machine, what the server computes with, settings."""
    return {
        "started": dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        "first_step": first_step,
        "versions": {
            "tinkersmith": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
        "system": f"{platform.system()} {platform.machine()}",
        "computes": dict(standing.server),
        "settings": dict(settings),
    }


def add_session(run: RunFolder, standing: Standing, record: dict[str, Any], **more: Any) -> None:
    """Add a process to the run's settings.json, whose facts become those of `standing`."""
    facts = run.facts()
    sessions = [*_list(facts.get("sessions")), record]
    present = {name: value for name, value in standing.facts().items() if value}
    write_json(run.file("settings.json"), {**facts, **present, **more, "sessions": sessions})


def differences(facts: Mapping[str, Any], standing: Standing, now: dict[str, Any]) -> Differences:
    """Compare the facts of a run with what the process `now` stands on.

    Args:
        facts: the content of settings.json.
        now: the `session` of this process.
    """
    result = Differences()
    unknown = [about for name, about in _SENSE.items() if not facts.get(name)]
    sessions = _list(facts.get("sessions"))
    before = _mapping(sessions[-1]) if sessions else {}
    for name, about in _SENSE.items():
        recorded, present = facts.get(name), getattr(standing, name)
        if recorded and present and recorded != present:
            result.refused.append(f"{about} changed")
    # Other tokens are other data and other questions, too.
    of_tokens = [f"{_SENSE[name]} changed" for name in ("data_digest", "questions_digest")]
    others = [sentence for sentence in result.refused if sentence not in of_tokens]
    result.refused = others or result.refused
    if standing.base_fingerprint is None:  # nothing could be compared in any version
        unknown = [about for about in unknown if about != _SENSE["base_fingerprint"]]
    if standing.questions_digest is None:
        unknown = [about for about in unknown if about != _SENSE["questions_digest"]]
    if not sessions:
        unknown.append("the versions")
    if unknown:
        result.said.append(
            f"settings.json does not say what {_listed(unknown)} were, so that a change cannot be "
            "seen"
        )
    for name, value in now["settings"].items():
        recorded = _mapping(before.get("settings")).get(name, value)
        if recorded == value or name in _UNIMPORTANT_SETTINGS:
            continue
        sentence = f"{name} in settings.json is {value!r}; it was {recorded!r}"
        (result.refused if name in _SENSE_SETTINGS else result.said).append(sentence)
    for part in ("versions", "computes"):
        recorded_part = _mapping(before.get(part))
        for name, value in now[part].items():
            if name in recorded_part and recorded_part[name] != value:
                result.said.append(f"{name} is {value}; it was {recorded_part[name]}")
    if "system" in before and before["system"] != now["system"]:
        result.said.append(f"the machine is {now['system']}; it was {before['system']}")
    return result


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _list(value: Any) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else []


def _mapping(value: Any) -> dict[str, Any]:
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def template_digest(template_json: Any) -> str:
    """A digest that is equal for equal prompt templates."""
    return digest_of(json.dumps(template_json, sort_keys=True))
