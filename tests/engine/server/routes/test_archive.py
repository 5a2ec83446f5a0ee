"""Copies of checkpoints, search of sessions, and the token that tells who asks."""

import time

import pytest
import tinker

from tests.support.clients import new_client, train
from tests.support.engine import KEY, MODEL, RunningEngine, random_datums
from tests.support.raw_client import call
from tinkersmith.engine.server.identity import is_token, make_token

pytestmark = pytest.mark.engine


def test_a_copy_outlives_its_source_and_loads_the_same_weights(
    service: tinker.ServiceClient, rest: tinker.RestClient
) -> None:
    client = new_client(service)
    data = random_datums(2)
    train(client, data, rate=0.1)
    expected = client.forward(data, "cross_entropy").result().metrics["loss:sum"]
    source = client.save_state("original").result().path
    copy = rest.copy_weights(source, "archive", ttl_seconds=3600).result()
    rest.delete_checkpoint_from_tinker_path(source).result()
    other = service.create_training_client_from_state_with_optimizer(copy).result()
    assert other.forward(data, "cross_entropy").result().metrics["loss:sum"] == expected


def test_a_repeated_copy_request_makes_one_copy(
    service: tinker.ServiceClient, engine: RunningEngine
) -> None:
    path = new_client(service).save_state("twice").result().path
    body = {"source_path": path, "destination_project_id": "archive"}
    answers = [call(engine, "/copy_weights", body, X_Idempotency_Key="first") for _ in range(2)]
    assert answers[0] == answers[1] and answers[0][0] == 200
    other = call(engine, "/copy_weights", body, X_Idempotency_Key="two")
    assert other[0] == 200 and other != answers[0]


def test_sessions_are_found_by_metadata_and_page_by_page(engine: RunningEngine) -> None:
    services = [
        tinker.ServiceClient(base_url=engine.url, api_key=KEY, user_metadata={"found": "yes"})
        for _ in range(3)
    ]
    for service in services:
        service.create_sampling_client(base_model=MODEL).result()
    rest = engine.rest()
    seen: list[str] = []
    cursor = None
    for left in (2, 1, 0):
        page = rest.search_sessions(
            tinker.types.SessionSearchRequest(
                user_metadata={"found": "yes"}, limit=1, cursor=cursor
            )
        ).result()
        seen += [session.session_id for session in page.sessions]
        cursor = page.next_cursor
        assert (cursor is None) == (left == 0)
    assert len(set(seen)) == 3
    for service in services:
        service.close("success").result()


def test_the_user_is_local(rest: tinker.RestClient) -> None:
    assert rest.whoami().result().user_urn == "tml:user:local"


@pytest.mark.parametrize(
    "token",
    ["a.b.c", "..", "ü.x", make_token(b"tml-other", time.time()), make_token(KEY.encode(), 0)],
    ids=["nonsense", "empty", "no ascii", "of another key", "expired"],
)
def test_a_token_of_another_key_or_time_is_not_let_in(token: str) -> None:
    now = time.time()
    assert is_token(KEY.encode(), make_token(KEY.encode(), now), now)
    assert not is_token(KEY.encode(), token, now)
