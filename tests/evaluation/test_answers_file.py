"""The file that an evaluation's answers go to as they come."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinkersmith.errors import UserError
from tinkersmith.evaluation.answers_file import (
    AnswersFile,
    changed_facts,
    stored_answers,
    unfinished_file,
)
from tinkersmith.evaluation.questions import Answer, Question

FACTS = {"model_path": "tinker://a/b/c", "SEED": 1, "the tokenizer digest": "abc"}
VERSIONS = {"tinkersmith": "1"}


def question(name: str) -> Question:
    return Question(name, np.array([1, 2]), "p", 8, ())


def answer(text: str, draw: int = 1, **changes: Any) -> Answer:
    fields = {"generated": text, "thought_finished": True, "stop_reason": "stop", "tokens": 3}
    return Answer(draw=draw, produced=text, **{**fields, **changes})


def written(tmp_path: Path) -> Path:
    file = tmp_path / "results.unfinished.jsonl"
    answers = AnswersFile(file, FACTS, VERSIONS)
    answers.add("trained", question("q1"), [answer("是\u2028 5"), answer("six", 2)], 0.5)
    thought = {"generated": "<think>hm", "thought_finished": False, "stop_reason": "length"}
    answers.add("base", question("q1"), [answer("", **thought), answer("", 2, **thought)], 1.5)
    answers.close()
    return file


def test_answers_are_read_as_they_were_written(tmp_path: Path):
    stored = stored_answers(written(tmp_path))
    assert stored is not None and not stored.torn and stored.count == 4
    assert (stored.facts, stored.versions) == (FACTS, VERSIONS)
    assert [a.produced for a in stored.answers["trained"]["q1"]] == ["是\u2028 5", "six"]
    unfinished = stored.answers["base"]["q1"][0]
    assert (unfinished.generated, unfinished.thought_finished) == ("<think>hm", False)
    assert stored.seconds == {"trained": 0.5, "base": 1.5}


def test_a_cut_at_any_byte_loses_at_most_the_last_line_and_the_file_goes_on(tmp_path: Path):
    file = written(tmp_path)
    whole = file.read_bytes()
    lines = whole.count(b"\n")
    for cut in random.Random(1).sample(range(1, len(whole)), 60):
        file.write_bytes(whole[:cut])
        left = whole[:cut].count(b"\n")
        stored = stored_answers(file)
        assert (stored.count + 1 if stored else 0) == left
        assert stored is None or stored.torn == (whole[cut - 1 : cut] != b"\n")
        going_on = AnswersFile(file, FACTS, VERSIONS)
        going_on.add("base", question("q9"), [answer("nine")], 2.0)
        going_on.close()
        again = stored_answers(file)
        assert again is not None and again.count == max(left - 1, 0) + 1 <= lines + 1
        assert again.answers["base"]["q9"] == [answer("nine")]


def test_of_two_lines_for_one_answer_the_later_counts(tmp_path: Path):
    file = written(tmp_path)
    answers = AnswersFile(file, FACTS, VERSIONS)
    answers.add("trained", question("q1"), [answer("seven", 2)], 3.0)
    answers.close()
    stored = stored_answers(file)
    assert stored is not None
    assert [a.produced for a in stored.answers["trained"]["q1"]] == ["是\u2028 5", "seven"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{nonsense\n", "it is no JSON object"),
        (b"[]\n", "it is no JSON object"),
        (b"\xff\xfe\n", "it is no JSON object"),
        ({"tokens": "3"}, '"tokens" is a string'),
        ({"tokens": -1}, '"tokens" is the number -1'),
        ({"draw": 0}, '"draw" is the number 0'),
        ({"draw": True}, '"draw" is true'),
        ({"model": "other"}, '"model" is a string'),
        ({"thought_finished": 1}, '"thought_finished" is the number 1'),
        ({"produced": None}, '"produced" is null'),
        ({"elapsed": float("nan")}, '"elapsed" is'),
    ],
)
def test_a_damaged_line_is_named_with_its_number(tmp_path: Path, line: Any, words: str):
    file = written(tmp_path)
    first, second, *rest = file.read_bytes().splitlines(keepends=True)
    if isinstance(line, dict):
        line = json.dumps(json.loads(second) | line).encode() + b"\n"
    file.write_bytes(b"".join([first, line, *rest]))
    with pytest.raises(UserError) as caught:
        stored_answers(file)
    assert f"{file}, line 2 is damaged: {words}" in str(caught.value)
    # The advice can be followed.
    file.write_bytes(b"".join([first, *rest]))
    stored = stored_answers(file)
    assert stored is not None and stored.count == 3


@pytest.mark.parametrize("content", [b"my notes\n", b"my notes", b"[1]\n", b'{"format": "x"}\n'])
def test_a_file_that_is_something_else_is_neither_read_nor_changed(tmp_path: Path, content: bytes):
    file = tmp_path / "results.unfinished.jsonl"
    file.write_bytes(content)
    for act in (lambda: stored_answers(file), lambda: AnswersFile(file, FACTS, VERSIONS)):
        with pytest.raises(UserError, match="is in the way"):
            act()
    assert file.read_bytes() == content


def test_a_file_of_a_later_version_is_refused(tmp_path: Path):
    file = written(tmp_path)
    file.write_bytes(file.read_bytes().replace(b'"version": 1', b'"version": 2', 1))
    with pytest.raises(UserError, match="has version 2; this version of Tinkersmith goes on with"):
        stored_answers(file)


def test_beginning_anew_never_takes_answers_away(tmp_path: Path):
    file = written(tmp_path)
    content = file.read_bytes()
    with pytest.raises(UserError, match=r"holds 4 answers .* Go on with: the command - or remove"):
        AnswersFile(file, FACTS, VERSIONS, again="the command")
    assert file.read_bytes() == content
    file.write_bytes(content[: content.index(b"\n") + 1])  # the header alone: nothing is lost
    AnswersFile(file, {"SEED": 2}, VERSIONS, again="the command").close()
    stored = stored_answers(file)
    assert stored is not None and stored.facts == {"SEED": 2}


def test_two_evaluations_do_not_write_to_one_file(tmp_path: Path):
    file = written(tmp_path)
    first = AnswersFile(file, FACTS, VERSIONS)
    with pytest.raises(UserError, match="is in use by another evaluation"):
        AnswersFile(file, FACTS, VERSIONS)
    first.close()
    AnswersFile(file, FACTS, VERSIONS).close()


def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path: Path, monkeypatch: Any):
    import errno
    import os

    file = written(tmp_path)
    content = file.read_bytes()
    answers = AnswersFile(file, FACTS, VERSIONS)
    real, calls = os.write, 0

    def full(handle: int, data: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            return real(handle, bytes(data)[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        answers.add("trained", question("q2"), [answer("x")], 1.0)
    monkeypatch.undo()
    answers.close()
    assert file.read_bytes() == content


def test_what_changed_is_named():
    file = Path("x")
    assert changed_facts(FACTS, FACTS) == []
    changed = {**FACTS, "SEED": 2, "the tokenizer digest": "abd", "model_path": "tinker://d"}
    assert changed_facts(FACTS, changed) == [
        "model_path is 'tinker://d'; it was 'tinker://a/b/c'",
        "SEED is 2; it was 1",
        "the tokenizer changed",
    ]
    assert changed_facts(FACTS, {k: v for k, v in FACTS.items() if k != "SEED"}) == [
        "SEED is None; it was 1"
    ]
    assert unfinished_file(file / "a.json").name == "a.unfinished.jsonl"
    assert unfinished_file(file / "a.csv").name == "a.csv.unfinished.jsonl"
