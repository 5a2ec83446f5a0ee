"""Which metrics an evaluation computes, and what is said about it."""

import json

import pytest

from tinkersmith.errors import UserError
from tinkersmith.metrics.choose import Answered, ChosenMetrics, metrics_for

LABELS = ["yes", "no"] * 10
OBJECTS = [json.dumps({"n": n}) for n in range(20)]
TEXTS = [f"A longer answer, number {n}." for n in range(20)]


def scores_of(chosen: ChosenMetrics, expected: str, produced: str) -> dict[str, float]:
    answered = Answered(expected, produced, "prompt", {}, "test.json, record 1")
    return {
        name: value for scorer in chosen.scorers for name, value in scorer.scores(answered).items()
    }


def test_auto_is_the_three_for_plain_texts():
    chosen = metrics_for(["auto"], TEXTS)
    assert chosen.graded == ("exact_match", "final_answer", "contains_answer")
    assert (chosen.scorers, chosen.said, chosen.labels, chosen.structured) == ([], [], None, False)
    assert not (chosen.perplexity or chosen.judge or chosen.bleu)


def test_auto_finds_labels_and_says_so():
    chosen = metrics_for(["auto"], LABELS)
    assert chosen.labels is not None
    assert "The expected outputs are 2 labels: no, yes." in chosen.said[0]
    assert scores_of(chosen, "yes", "Yes.") == {"label": 1.0}
    assert scores_of(chosen, "yes", "yes and no") == {"label": 0.0}


def test_auto_finds_json_and_says_so():
    chosen = metrics_for(["auto"], [*OBJECTS[:18], "text", "text"])
    assert chosen.structured and "18 of 20 expected outputs are JSON" in chosen.said[0]
    assert scores_of(chosen, '{"n": 1}', '{"n": 1}')["json_match"] == 1.0
    assert scores_of(chosen, "text", '{"n": 1}') == {}
    assert not metrics_for(["auto"], [*OBJECTS[:17], "text", "text", "text"]).structured


def test_names_choose_exactly_what_is_named():
    chosen = metrics_for(["final_answer", "token_f1", "rouge_l", "bleu"], ["今天天气很好"])
    assert chosen.graded == ("final_answer",)
    assert chosen.bleu == "zh" and any('tokenizer "zh"' in line for line in chosen.said)
    assert scores_of(chosen, "今天天气很好", "今天天气很好") == {
        "token_f1": 1.0,
        "rouge_l": 1.0,
        "sentence_bleu": 1.0,
    }
    assert metrics_for(["perplexity"], TEXTS).perplexity
    assert metrics_for(["judge"], TEXTS).judge


def test_json_and_labels_that_are_named_must_be_there():
    with pytest.raises(UserError, match="no expected output is a JSON object"):
        metrics_for(["json"], TEXTS)
    with pytest.raises(UserError, match="longer texts"):
        metrics_for(["labels"], ["x" * 50, "y" * 50])


def test_functions_of_the_users_are_scorers_with_their_own_names(tmp_path):
    (tmp_path / "a.py").write_text(
        "def short(produced): return len(produced) < 3\ndef bleu(produced): return 1\n"
    )
    (tmp_path / "b.py").write_text("def short(produced): return 1\ndef long(produced): return 2\n")
    chosen = metrics_for([f"{tmp_path}/a.py:short", f"{tmp_path}/b.py:long"], TEXTS)
    assert scores_of(chosen, "", "four") == {"short": 0.0, "long": 2.0}
    with pytest.raises(UserError, match="has the name of another metric"):
        metrics_for([f"{tmp_path}/a.py:short", f"{tmp_path}/b.py:short"], TEXTS)
    with pytest.raises(UserError, match="has the name of another metric"):
        metrics_for([f"{tmp_path}/a.py:bleu"], TEXTS)
