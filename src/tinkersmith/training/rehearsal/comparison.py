"""A run that begins, and a rehearsal -> whether the run will send what was rehearsed.

What differs stops the run before anything is sent, unless the user allows it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tinkersmith.batches.in_memory import TokensInMemory
from tinkersmith.errors import UserError
from tinkersmith.runs.rehearsals import (
    Rehearsal,
    changed_settings,
    changes_since,
    difference,
    matching_rehearsal,
    open_rehearsal,
)
from tinkersmith.runs.requests import Compared, compared_before
from tinkersmith.runs.resume import Resume
from tinkersmith.service.digests import creation_line
from tinkersmith.settings.fields import Settings
from tinkersmith.training.rehearsal.planned import Planned

_SENT_ANEW = ("LEARNING_RATE", "GRAD_CLIP_NORM")  # what --resume may change of the requests
_HOW = "Rehearse again with --rehearse, or insist with --allow-changes."


class NotRehearsed(UserError):
    """A request is not as it was rehearsed; the sentence says how to go on."""


def compared_with(
    settings: Settings,
    resume: Resume | None,
    name: str,
    allow_changes: bool,
    say: Callable[[str], None],
) -> Compared | None:
    """The rehearsal that a run is compared with, if there is one, with what is said of it.

    Args:
        name: of the rehearsal; "": the newest one of the settings.

    Raises:
        NotRehearsed: the settings are not those of the rehearsal that was named.
        UserError: there is no such rehearsal, or it is damaged.
    """
    if resume is not None:
        changed = [setting for setting in _SENT_ANEW if setting in resume.changes]
        compared = compared_before(resume.run, allow_changes=resume.allow_changes or bool(changed))
        if compared is not None and changed:
            say(
                f"{compared.rehearsal.name} is not followed any more: {', '.join(changed)} changed."
            )
        return compared
    if name:
        rehearsal = open_rehearsal(name, settings.output_dir)
        if changes := changed_settings(rehearsal.settings(), settings):
            what = not_rehearsed(rehearsal, "; ".join(changes))
            if not allow_changes:
                raise NotRehearsed(f"{what}. Nothing was sent. {_HOW}")
            say(f"Warning: {what}. It goes on, as --allow-changes says.")
    else:
        rehearsal, note = matching_rehearsal(settings)
        if note:
            say(note)
        if rehearsal is None:
            if allow_changes:
                raise UserError(
                    "--allow-changes has no effect: no rehearsal has these settings. Leave it out, "
                    "or name a rehearsal with --rehearsal."
                )
            return None
    facts = rehearsal.facts()
    say(f"Sends what {rehearsal.name} sent, of {facts.get('made')}: each request is compared.")
    return Compared(rehearsal, allow_changes)


def check_creation(
    creation: Mapping[str, Any], compared: Compared, say: Callable[[str], None]
) -> None:
    """Compare what makes the training client, before it is made.

    Raises:
        NotRehearsed: it is another one, and that is not allowed.
    """
    line, rehearsal = creation_line(creation), compared.rehearsal
    if rehearsal.digests().get((0, "create")) != line["digest"]:
        _stop_or_say(compared, difference(rehearsal, line), say)


def check_plan(
    planned: Planned,
    digests: Mapping[str, str | None],
    compared: Compared,
    say: Callable[[str], None],
) -> None:
    """Compare what all requests depend on, and look for the first other one where that changed.

    A stream is not read to its end for that: its requests are compared as they are sent.

    Args:
        digests: of the tokenizer, the template, the data and the questions.

    Raises:
        NotRehearsed: a request will be another one, and that is not allowed.
    """
    context = planned.encoding.context
    changes = changes_since(compared.rehearsal, digests, planned.total_steps, context)
    if not changes:
        return
    if not isinstance(planned.data, TokensInMemory):
        say(f"  Since {compared.rehearsal.name}: {'; '.join(changes)}. Each request is compared.")
        return
    if first := planned.first_difference(compared.rehearsal):
        _stop_or_say(compared, f"{'; '.join(changes)}. The first difference is {first}", say)


def not_rehearsed(rehearsal: Rehearsal, what: str) -> str:
    """The sentence about a difference, without its dot."""
    return f"This run would not send what {rehearsal.name} sent: {what}"


def _stop_or_say(compared: Compared, what: str, say: Callable[[str], None]) -> None:
    sentence = not_rehearsed(compared.rehearsal, what)
    if not compared.allow_changes:
        raise NotRehearsed(f"{sentence}. Nothing was trained. {_HOW}")
    say(f"  Warning: {sentence}. It goes on, as --allow-changes says.")
