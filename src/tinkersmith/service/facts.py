"""A training client -> what its server computes with, as far as the server is our engine."""

from typing import TYPE_CHECKING, Any, cast

from tinkersmith.service.connection import Service
from tinkersmith.service.probe import engine_answer

if TYPE_CHECKING:
    import tinker


def engine_facts(service: Service, client: "tinker.TrainingClient") -> dict[str, Any]:
    """Device, precision, CPU threads and versions of a training client on an engine of ours.

    Sums depend on them in their last bits. Other servers do not say: then the result is empty.
    """
    facts = None if service.kind == "cloud" else engine_answer(service.probe.url, service.key)
    if facts is None:
        return {}
    if service.kind == "embedded":  # of the same installation as this process
        facts = {name: value for name, value in facts.items() if name not in ("engine", "torch")}
    of_client = {
        "dtype": cast(dict[str, Any], facts.pop("dtypes", {})).get(service.base_model),
        "threads": cast(dict[str, Any], facts.pop("threads", {})).get(client.model_id),
    }
    return {**facts, **{name: value for name, value in of_client.items() if value is not None}}
