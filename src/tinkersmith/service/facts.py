"""A training client -> what its server computes with, as far as the server is our engine."""

import http.client
import json
import urllib.request
from typing import TYPE_CHECKING, Any, cast

from tinkersmith.service.connection import Service

if TYPE_CHECKING:
    import tinker

_PATIENCE = 10.0  # seconds; the answer needs no computation


def engine_facts(service: Service, client: "tinker.TrainingClient") -> dict[str, Any]:
    """Device, precision, CPU threads and versions of a training client on an engine of ours.

    Sums depend on them in their last bits. Other servers do not say: then the result is empty.
    """
    if service.kind == "cloud":
        return {}
    request = urllib.request.Request(
        f"{service.probe.url}/api/v1/engine_facts", headers={"X-API-Key": service.key}
    )
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as response:
            content: Any = json.load(response)
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    if not isinstance(content, dict):
        return {}
    facts = cast(dict[str, Any], content)
    if service.kind == "embedded":  # of the same installation as this process
        facts = {name: value for name, value in facts.items() if name not in ("engine", "torch")}
    of_client = {
        "dtype": cast(dict[str, Any], facts.pop("dtypes", {})).get(service.base_model),
        "threads": cast(dict[str, Any], facts.pop("threads", {})).get(client.model_id),
    }
    return {**facts, **{name: value for name, value in of_client.items() if value is not None}}
