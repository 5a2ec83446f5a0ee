"""What a resumed run stands on, compared with what it stood on."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tinkersmith.runs.folder import RunFolder
from tinkersmith.runs.provenance import Differences, Standing, add_session, differences, session

STANDING = Standing("base", "tokenizer", "template", "data", {"device": "cpu", "threads": 2})
SETTINGS = {"LORA_RANK": 8, "LEARNING_RATE": 0.1, "OUTPUT_DIR": "runs"}


@pytest.fixture
def facts() -> dict[str, Any]:
    return {**STANDING.facts(), "sessions": [session(STANDING, SETTINGS, 0)]}


def test_an_unchanged_run_has_no_differences(facts: dict[str, Any]) -> None:
    found = differences(facts, STANDING, session(STANDING, SETTINGS, 4))
    assert (found.said, found.refused) == ([], [])


@pytest.mark.parametrize(
    ("field", "about"),
    [
        ("base_fingerprint", "the weights of the base model changed"),
        ("tokenizer_digest", "the tokenizer changed"),
        ("template_digest", "the prompt template changed"),
        ("data_digest", "the training data changed"),
    ],
)
def test_what_makes_no_sense_is_refused(facts: dict[str, Any], field: str, about: str) -> None:
    other = dataclasses.replace(STANDING, **{field: "other"})
    assert differences(facts, other, session(other, SETTINGS, 4)).refused == [about]


def test_other_questions_are_refused_where_some_are_asked(facts: dict[str, Any]) -> None:
    asking = dataclasses.replace(STANDING, questions_digest="questions")
    other = dataclasses.replace(STANDING, questions_digest="other")
    recorded = {**facts, **asking.facts()}
    found = differences(recorded, other, session(other, SETTINGS, 4))
    assert found.refused == ["the questions of EVAL_FILES changed"]
    assert differences(recorded, asking, session(asking, SETTINGS, 4)) == Differences()


def test_another_tokenizer_explains_other_data(facts: dict[str, Any]) -> None:
    facts["questions_digest"] = "questions"
    other = dataclasses.replace(
        STANDING, tokenizer_digest="other", data_digest="other", questions_digest="others"
    )
    found = differences(facts, other, session(other, SETTINGS, 4))
    assert found.refused == ["the tokenizer changed"]


def test_what_can_change_the_last_digits_is_said(facts: dict[str, Any]) -> None:
    other = dataclasses.replace(STANDING, server={"device": "cuda", "threads": 2, "dtype": "bf16"})
    now = session(other, {**SETTINGS, "LEARNING_RATE": 0.2, "OUTPUT_DIR": "elsewhere"}, 4)
    now["versions"]["torch"] = "99.0"
    found = differences(facts, other, now)
    assert found.refused == []
    before = facts["sessions"][0]["versions"]["torch"]
    assert found.said == [
        "LEARNING_RATE in settings.json is 0.2; it was 0.1",
        f"torch is 99.0; it was {before}",
        "device is cuda; it was cpu",
    ]


def test_another_rank_is_refused(facts: dict[str, Any]) -> None:
    found = differences(facts, STANDING, session(STANDING, {**SETTINGS, "LORA_RANK": 16}, 4))
    assert found.refused == ["LORA_RANK in settings.json is 16; it was 8"]


def test_a_run_of_an_older_version_says_what_cannot_be_compared() -> None:
    old = {"data_digest": "data"}
    (said,) = differences(old, STANDING, session(STANDING, SETTINGS, 4)).said
    assert "the weights of the base model, the tokenizer, the prompt template and the ver" in said
    damaged = {"data_digest": "data", "sessions": 7}
    assert differences(damaged, STANDING, session(STANDING, SETTINGS, 4)).said == [said]


def test_a_model_that_only_the_server_has_is_not_compared(facts: dict[str, Any]) -> None:
    cloud = dataclasses.replace(STANDING, base_fingerprint=None, server={})
    found = differences(facts | {"base_fingerprint": None}, cloud, session(cloud, SETTINGS, 4))
    assert (found.said, found.refused) == ([], [])


def test_each_resume_adds_a_session(tmp_path: Path, facts: dict[str, Any]) -> None:
    run = RunFolder(tmp_path)
    content = {"settings": SETTINGS, "prompt_template": {}, **facts}
    run.file("settings.json").write_text(json.dumps(content))
    other = dataclasses.replace(STANDING, data_digest="other")
    add_session(run, other, session(other, SETTINGS, 4), total_steps=9)
    assert [one["first_step"] for one in run.facts()["sessions"]] == [0, 4]
    assert run.facts()["data_digest"] == "other"
    assert run.facts()["total_steps"] == 9
