"""Settings -> the list of models that the server of BACKEND offers."""

import json
from pathlib import Path

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
        bundled = sorted(BUNDLED_MODELS.items())
        return (
            "This machine, beside model folders and models of the hub,",
            [OfferedModel(name, _context(folder), True) for name, folder in bundled],
        )
    with open_service(settings) as service:
        offers = [
            OfferedModel(name, context, name not in service.sampled_only)
            for name, context in service.max_contexts.items()
        ]
    return f"The server at {url}" if url else "Tinker's cloud", offers


def _context(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text("utf-8"))["max_position_embeddings"]
