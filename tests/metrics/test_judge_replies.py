"""The file of a judge's replies: whole lines count, torn and foreign ones do not."""

from pathlib import Path

import pytest

from tinkersmith.errors import UserError
from tinkersmith.metrics.judge_replies import JudgeReplies, JudgeReply, request_digest

REPLY = JudgeReply("分数\nScore: 7", False, 100, None)


def test_replies_are_read_back_and_a_new_evaluation_begins_without_them(tmp_path: Path):
    file = tmp_path / "r.judge.jsonl"
    JudgeReplies(file).add("a", REPLY)
    with file.open("ab") as torn:
        torn.write(b'{"request": "b", "te')
    again = JudgeReplies(file, goes_on=True)
    assert again.get("a") == REPLY and again.get("b") is None and len(again) == 1
    again.add("c", REPLY)
    assert len(JudgeReplies(file, goes_on=True)) == 2, "the torn line stands alone"
    assert len(JudgeReplies(file)) == 0 and not file.exists()


@pytest.mark.parametrize(
    "line", [b"[]", b"3", b'{"request": "a"}', b'{"request": 1, "text": "x"}', b"\xff", b"no"]
)
def test_a_foreign_line_is_passed_over(tmp_path: Path, line: bytes):
    file = tmp_path / "r.judge.jsonl"
    file.write_bytes(line + b"\n")
    assert len(JudgeReplies(file, goes_on=True)) == 0


def test_without_a_file_replies_are_in_memory(tmp_path: Path):
    replies = JudgeReplies()
    replies.add("a", REPLY)
    replies.remove()
    assert replies.get("a") == REPLY
    assert len(JudgeReplies(tmp_path / "none.jsonl", goes_on=True)) == 0


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path):
    replies = JudgeReplies(tmp_path / "folder" / "r.jsonl")
    with pytest.raises(UserError, match=r"r\.jsonl cannot be written"):
        replies.add("a", REPLY)


def test_a_request_is_known_by_its_model_and_texts():
    assert request_digest("m", "a", "b") == request_digest("m", "a", "b")
    digests = {request_digest(*texts) for texts in (("m", "a", "b"), ("n", "a", "b"), ("m", "ab"))}
    assert len(digests) == 3
