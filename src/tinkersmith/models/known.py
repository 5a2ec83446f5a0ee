"""A model's name -> what the table knows of it: prices, a learning rate, and why it is gone."""

from collections.abc import Collection

from tinkersmith.models.line_up import (
    OFFERED,
    RETIRED,
    RETIREMENTS_PAGE,
    TABLE_DATE,
    KnownModel,
    Prices,
)

_BY_NAME = {model.name.lower(): model for model in (*OFFERED, *RETIRED)}
_BY_WRONG_NAME = {
    name.lower(): model for model in RETIRED if model.retired for name in model.retired.names
}
# Exponents of (2000 / hidden size) in tinker-cookbook's `get_lr`, which are calibrated for these.
_EXPONENTS = {"llama": 0.781, "qwen": 0.0775}
_LORA_RATE = 5e-4  # tinker-cookbook: 5e-5 for all weights, and ten times that for a LoRA


def hub_name(name: str) -> str:
    """The name of a model's repository: without the context that the cloud adds, :peft:262144."""
    return name.split(":", 1)[0]


def known_model(name: str) -> KnownModel | None:
    """The table's row of a model, also by a wrong name that is in use; None where it has none."""
    key = hub_name(name).lower()
    return _BY_NAME.get(key) or _BY_WRONG_NAME.get(key)


def prices_of(name: str) -> Prices | None:
    """What a million tokens of a model cost in Tinker's cloud; None where the table does not say.

    A name may have a longer context than the plain one, and other prices: org/name:peft:262144.
    """
    model = known_model(name)
    if model is None or model.retired is not None:
        return None
    _, _, context = name.partition(":peft:")
    if not context:
        return model.prices if model.shortest and ":" not in name else None
    return dict(model.longer).get(int(context)) if context.isdecimal() else None


def suggested_learning_rate(name: str, hidden: int | None = None) -> float | None:
    """The learning rate of a LoRA by tinker-cookbook's formula, rounded to two digits.

    The formula is 5e-4 * (2000 / hidden size) ** exponent, calibrated for Llama and Qwen alone.

    Args:
        hidden: the width of the hidden states, if it is known from the model's own files.
    """
    model = known_model(name)
    width = hidden or (model.hidden if model else None)
    exponent = next((power for key, power in _EXPONENTS.items() if key in name.lower()), None)
    if width is None or exponent is None:
        return None
    return float(f"{_LORA_RATE * (2000 / width) ** exponent:.1e}")


def adapter_weights(name: str, rank: int) -> int | None:
    """How many weights an adapter of this rank has in the cloud; None where it is not known."""
    model = known_model(name)
    return None if model is None else sum(model.adapter) * rank


def vocabulary_size(name: str) -> int | None:
    """How many tokens a model knows, with the unused ones; None where the table does not say."""
    model = known_model(name)
    return None if model is None else model.adapter[2] - model.hidden


def offered_names(model: KnownModel) -> list[str]:
    """The names under which the table has a model, with their contexts."""
    names = [model.name] if model.shortest else []
    return [*names, *(f"{model.name}:peft:{context}" for context, _ in model.longer)]


def current_replacements(model: KnownModel) -> list[str]:
    """What replaces a retired model, over as many steps as it takes."""
    if model.retired is None:
        return [model.name]
    names: list[str] = []
    for name in model.retired.replacements:
        replacement = known_model(name)
        names += [name] if replacement is None else current_replacements(replacement)
    return list(dict.fromkeys(names))


def retirement_note(name: str, offered: Collection[str] = ()) -> str:
    """Why a name is not offered, as far as the table knows; "" where it knows nothing.

    Args:
        offered: the server's own list. A replacement is only named if it is in there.
    """
    model = known_model(name)
    if model is None or model.retired is None:
        return ""
    wrong = "" if hub_name(name).lower() == model.name.lower() else f" (as {model.name})"
    note = f"Tinker's cloud retired {hub_name(name)}{wrong} on {model.retired.since}"
    names = current_replacements(model)
    if offered:
        names = [name for name in names if name in offered]
    if not names:
        return f"{note}: see {RETIREMENTS_PAGE}."
    mode = f" ({model.retired.mode})" if model.retired.mode else ""
    return f"{note}. Its list of retirements leads to {' or '.join(names)}{mode}."


def not_offered(name: str, server: str, offered: Collection[str], nearest: str) -> str:
    """The sentences about a model that is not in a server's list.

    Args:
        server: the server's address, or what it is called.
        nearest: the names that it offers, nearest first.
    """
    about = retirement_note(name, offered)
    if not about and known_model(name) is not None:
        about = f"The table of {TABLE_DATE} has it, but the server's own list decides."
    said = f" {about}" if about else ""
    return (
        f"The server at {server} does not offer {name} for training.{said} It offers, nearest "
        f"first: {nearest}. Set BASE_MODEL to one of these; more about them: tinkersmith models"
    )
