"""The served models -> the answers of GET /v1/models, for OpenAI's clients and for Anthropic's."""

from collections.abc import Mapping, Sequence
from typing import Any

from tinkersmith.serving.errors import ServingError
from tinkersmith.serving.models import ServedModel

_PAGE, _LARGEST_PAGE = 20, 1000  # models, as Anthropic's API has them


def model_json(model: ServedModel) -> dict[str, Any]:
    """A model as the clients of both APIs read it."""
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "tinkersmith",
        # What Anthropic's clients read of a model.
        "type": "model",
        "display_name": model.name,
        "created_at": "1970-01-01T00:00:00Z",
        "kind": model.kind,
        "base": model.base,
        "template": {
            "name": model.template.name if model.template is not None else "chat",
            "has_input": model.has_input,
        },
    }


def page_of(models: Sequence[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of models in Anthropic's form.

    Args:
        query: `limit`, and `after_id` or `before_id`, the model behind or before which to list.

    Raises:
        ServingError: one of these is wrong.
    """
    limit = query.get("limit", str(_PAGE))
    if not (limit.isdecimal() and len(limit) < 6 and 1 <= int(limit) <= _LARGEST_PAGE):
        raise ServingError(
            400, f"limit is {limit[:100]!r}; it must be a whole number from 1 to {_LARGEST_PAGE:,}."
        )
    if "after_id" in query and "before_id" in query:
        raise ServingError(400, "after_id and before_id exclude each other; leave one out.")
    begin, end, backwards = 0, len(models), "before_id" in query
    if "after_id" in query:
        begin = _place(models, "after_id", query["after_id"]) + 1
    elif backwards:
        end = _place(models, "before_id", query["before_id"])
    page = models[begin:end]
    shown = page[-int(limit) :] if backwards else page[: int(limit)]
    return {
        "data": shown,
        "has_more": len(shown) < len(page),
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
    }


def _place(models: Sequence[dict[str, Any]], name: str, wanted: str) -> int:
    for place, model in enumerate(models):
        if model["id"] == wanted:
            return place
    raise ServingError(400, f"{name} is {wanted[:100]!r}, which is no model of this server.")
