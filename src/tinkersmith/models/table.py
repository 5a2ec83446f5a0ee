"""A server's list of models -> the lines that show it beside the table of known models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinkersmith.models.known import (
    current_replacements,
    known_model,
    offered_names,
    prices_of,
    suggested_learning_rate,
)
from tinkersmith.models.line_up import (
    CACHED_SHARE,
    OFFERED,
    PRICES_DATE,
    PRICES_PAGE,
    RETIRED,
    STORAGE_PRICE,
    TABLE_DATE,
    KnownModel,
    Prices,
)

_THINKING = {"none": "none", "always": "always", "switch": "on or off", "effort": "levels"}


@dataclass(frozen=True, slots=True)
class OfferedModel:
    """A model in a server's list."""

    name: str
    context: int | None  # tokens, as the server says
    trainable: bool


def offer_rows(offers: list[OfferedModel]) -> list[dict[str, Any]]:
    """One row for each model that a server offers; None where nobody says."""
    return [_row(offer.name, offer.context, offer) for offer in offers]


def unlisted_rows(offers: list[OfferedModel]) -> list[dict[str, Any]]:
    """The table's rows that are not in a server's list."""
    names = {offer.name for offer in offers}
    return [
        _row(name, None, None)
        for model in OFFERED
        for name in offered_names(model)
        if name not in names
    ]


def _row(name: str, context: int | None, offer: OfferedModel | None) -> dict[str, Any]:
    model, prices = known_model(name), prices_of(name)
    return {
        "name": name,
        "offered": offer is not None,
        "trainable": offer.trainable if offer else None,
        "context": context or (_context(model, name) if model else None),
        "family": model.family if model else None,
        "thinking": model.thinking if model else None,
        "experts": model.experts if model else None,
        "chat": model.chat if model else None,
        "gated": model.gated if model else None,
        "tokenizer": (model.tokenizer or None) if model else None,
        "learning_rate": suggested_learning_rate(name),
        "prices": None if prices is None else prices_object(prices),
    }


def _context(model: KnownModel, name: str) -> int | None:
    longer = name.rpartition(":peft:")[2]
    return int(longer) if ":peft:" in name and longer.isdecimal() else model.context


def prices_object(prices: Prices) -> dict[str, Any]:
    """The prices of a million tokens, as JSON has them."""
    return {
        "prefill": prices.prefill,
        "sample": prices.sample,
        "train": prices.train,
        "discounted": prices.discounted,
    }


def aligned_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as an aligned table; "?" is what is not known."""
    titles = ("model", "context", "thinking", "kind", "rate", "prefill", "sample", "train")
    texts = [titles, *(_cells(row) for row in rows)]
    widths = [max(len(text[place]) for text in texts) for place in range(len(titles))]
    return [
        "  ".join(
            cell.ljust(width) if place < 4 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(text, widths, strict=True))
        ).rstrip()
        for text in texts
    ]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    prices: Mapping[str, Any] = row["prices"] or {}
    kinds = [
        {None: "?", True: "chat", False: "base"}[row["chat"]],
        *(["experts"] if row["experts"] else []),
        *(["gated"] if row["gated"] else []),
        *(["sampling only"] if row["trainable"] is False else []),
    ]
    return (
        row["name"],
        f"{row['context']:,}" if row["context"] else "?",
        _THINKING.get(row["thinking"], "?"),
        ", ".join(kinds),
        f"{row['learning_rate']:g}" if row["learning_rate"] else "?",
        *(
            _price(prices.get(kind), bool(prices.get("discounted")))
            for kind in ("prefill", "sample", "train")
        ),
    )


def _price(price: float | None, discounted: bool) -> str:
    return "?" if price is None else f"{price:g}{'*' if discounted else ''}"


def column_notes() -> list[str]:
    """What the columns mean, and of which day they are."""
    return [
        f"Names, contexts and kinds beside the server's list: as of {TABLE_DATE}. The server's "
        "list decides.",
        f"Prices: USD for a million tokens in Tinker's cloud, as of {PRICES_DATE}; * is half of "
        "the usual price for a limited time. Of a prompt, what was read shortly before costs "
        f"{CACHED_SHARE:.0%} of prefill. "
        f"Storage is {STORAGE_PRICE:g} USD for a GB and a month. "
        f"Today's: {PRICES_PAGE}",
        "rate: a LEARNING_RATE by tinker-cookbook's formula, which holds for Llama and Qwen. "
        "?: not known.",
    ]


def retired_lines() -> list[str]:
    """The retired models, since when, and what replaces them."""
    lines: list[str] = []
    for model in RETIRED:
        assert model.retired is not None
        mode = f" ({model.retired.mode})" if model.retired.mode else ""
        instead = " or ".join(current_replacements(model))
        lines.append(f"{model.name}  {model.retired.since}  -> {instead}{mode}")
    return lines
