"""The trackers that a user can name in TRACKERS."""

import difflib
from collections.abc import Sequence

from tinkersmith.errors import UserError, one_line

TRACKER_NAMES = ("tensorboard", "wandb", "swanlab", "trackio", "mlflow")
# What users call these trackers elsewhere.
_OTHER_NAMES = {
    "tb": "tensorboard",
    "tensorboardx": "tensorboard",
    "weights & biases": "wandb",
    "weights and biases": "wandb",
    "w&b": "wandb",
}


def check_tracker_names(names: Sequence[str]) -> None:
    """Refuse names that are no trackers.

    Raises:
        UserError: a name is unknown or occurs twice.
    """
    for name in names:
        if name not in TRACKER_NAMES:
            plain = name.strip().lower()
            near = _OTHER_NAMES.get(plain) or next(
                iter(difflib.get_close_matches(plain, TRACKER_NAMES, n=1, cutoff=0.6)), None
            )
            meant = f'Did you mean "{near}"? ' if near else ""
            raise UserError(
                f'TRACKERS names "{one_line(name)}", which is no tracker. {meant}The trackers are '
                f"{', '.join(TRACKER_NAMES)}."
            )
        if names.count(name) > 1:
            raise UserError(f'TRACKERS names "{name}" twice. Name it once.')
