"""Bytes of a batch: its limits, and whose operation it is, before it is parsed."""

import numpy as np
import pytest
import zstandard

from tests.support.raw_client import batch
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.server.bodies import Address, json_address, open_batch, refused_batch


def test_a_batch_is_opened_as_its_address_and_its_plain_bytes() -> None:
    body = batch("s:train:7", 123456, [1, 2, 3])
    for encoding, sent in (
        ("", body),
        ("identity", body),
        ("zstd", zstandard.ZstdCompressor().compress(body)),
    ):
        envelope = open_batch(sent, encoding)
        assert envelope.address == Address("s:train:7", 123456)
        assert envelope.plain == body


def test_a_batch_that_cannot_be_read_is_addressed_by_its_first_bytes() -> None:
    head = batch("s:train:7", 123456, [1, 2, 3])[:16]
    envelope = refused_batch(head, "", "too large.")
    assert envelope.address == Address("s:train:7", 123456)
    assert str(envelope.plain) == "too large."


@pytest.mark.parametrize(
    "head",
    [b"", b"\x0a", b"\x0a\x05abc", b"\x12\x01", b"\x0a\x01\xff\x10\x01", b"\x0a\xff" * 9],
)
def test_a_batch_without_an_address_is_refused(head: bytes) -> None:
    with pytest.raises(Refused, match="too large"):
        refused_batch(head, "", "too large.")
    with pytest.raises(Refused, match="with a model_id and a seq_id"):
        open_batch(head)


def test_too_many_parts_are_the_reason_that_the_future_reports() -> None:
    envelope = open_batch(batch("s:train:7", 5, [1, 2, 3]) + b"\x1a\x00" * 100_000)
    assert envelope.address == Address("s:train:7", 5)
    assert "more than 100,000 parts" in str(envelope.plain)


def test_random_bytes_are_refused_and_never_crash() -> None:
    rng = np.random.default_rng()
    for _ in range(500):
        body = rng.bytes(int(rng.integers(0, 60)))
        for encoding in ("", "zstd", "gzip"):
            try:
                open_batch(body, encoding)
            except Refused:
                continue


def test_the_address_of_a_json_body_is_found_though_the_rest_is_malformed() -> None:
    assert json_address(b'{"model_id" : "s:train:0", "seq_id": 12, "a": [') == ("s:train:0", 12)
    assert json_address(b'{"model_id": "s:train:0"}') is None
