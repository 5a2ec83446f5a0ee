"""Settings -> the list of models that the server of BACKEND offers."""

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.models.table import OfferedModel
from tinkersmith.service.connection import open_service, server_of
from tinkersmith.settings.fields import Settings


def offers_of(settings: Settings) -> tuple[str, list[OfferedModel]]:
    """What the server is called, and its models in its own order.

    Our own engine is not started for that: it offers the bundled models, and takes any folder.

    Raises:
        UserError: the server cannot be reached, or does not accept the key.
    """
    kind, url, _ = server_of(settings)
    if kind == "embedded":
        names = sorted(BUNDLED_MODELS)
        return (
            "This machine, beside model folders and models of the hub,",
            [OfferedModel(name, None, True) for name in names],
        )
    with open_service(settings) as service:
        offers = [
            OfferedModel(name, context, name not in service.sampled_only)
            for name, context in service.max_contexts.items()
        ]
    return f"The server at {url}" if url else "Tinker's cloud", offers
