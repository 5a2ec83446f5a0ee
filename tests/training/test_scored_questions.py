"""Which questions of EVAL_FILES are asked, what is said of them, and how answers become scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.sample_files import records, write
from tinkersmith.data.samples import Source, alpaca_sample
from tinkersmith.errors import UserError
from tinkersmith.evaluation.leaks import RECORD, Overlap, SharedQuestion
from tinkersmith.evaluation.questions import Question, Questions
from tinkersmith.evaluation.results import Record
from tinkersmith.progress import Progress
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.scored_questions import (
    eval_lines,
    metrics_of,
    read_eval_files,
    scores_of,
    trained_on_lines,
)


def silent() -> Progress:
    return Progress(lambda line: None)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Three of the ten questions are trained on; two records are of no use."""
    asked = [*records(10, seed=1), {"instruction": "no answer"}, {"text": "Plain text."}]
    trained = tmp_path / "train.jsonl"
    trained.write_text("".join(json.dumps(line) + "\n" for line in records(10, seed=1)[2:5]))
    return settings_from(
        {
            "DATA_FILES": [str(trained)],
            "EVAL_FILES": [str(write(tmp_path / "ask.json", asked)), str(tmp_path / "gone.json")],
            "EVAL_LIMIT": 0,
            "OUTPUT_DIR": str(tmp_path / "runs"),
        }
    )


def test_what_is_asked_is_said(settings: Settings) -> None:
    chosen = read_eval_files(settings, silent())
    assert chosen is not None and len(chosen.samples) == 10
    text = "\n".join(eval_lines(chosen, settings.seed))
    for words in (
        "gone.json does not exist",
        "1 sample is plain text, which asks nothing, and left out.",
        "Asked during training: 10 questions of EVAL_FILES.",
        'ask.json, record 11: "output" is missing',
    ):
        assert words in text
    few = read_eval_files(settings.model_copy(update={"eval_limit": 4}), silent())
    assert few is not None
    assert "4 of 10 questions of EVAL_FILES (EVAL_LIMIT). SEED = 42" in eval_lines(few, 42)[-1]


def test_questions_that_are_trained_on_as_well_are_counted_and_the_first_is_named() -> None:
    def shared(number: int, similarity: float) -> SharedQuestion:
        return SharedQuestion(Source("ask.json", number), Source("train.json", 7), similarity)

    leaks = Overlap(RECORD, [shared(3, 1.0), shared(4, 1.0)], [shared(5, 0.9)])
    exact, near = trained_on_lines(leaks, 10)
    assert exact == (
        "Warning: 2 of 10 questions of EVAL_FILES are also trained on, so the scores are too good "
        "(the first: ask.json, record 3 is train.json, record 7)."
    )
    assert "1 of 10 questions of EVAL_FILES is nearly equal to one that is trained on" in near
    assert trained_on_lines(Overlap(RECORD, [], []), 10) == [
        "No question of EVAL_FILES is in the training data."
    ]


def test_the_seed_alone_chooses_the_questions_in_the_order_of_the_file(settings: Settings) -> None:
    def chosen(**changes: object) -> list[int]:
        read = read_eval_files(settings.model_copy(update=changes), silent())
        assert read is not None
        return [sample.source.record for sample in read.samples]

    four = chosen(eval_limit=4)
    assert four == chosen(eval_limit=4) == sorted(four) and len(four) == 4
    assert four != chosen(eval_limit=4, seed=7)
    assert set(four) < set(chosen(eval_limit=7))
    assert len(chosen(eval_limit=99)) == 10
    assert read_eval_files(settings.model_copy(update={"eval_files": []}), silent()) is None


def test_files_that_ask_nothing_are_refused(settings: Settings, tmp_path: Path) -> None:
    text = write(tmp_path / "text.json", [{"text": "Plain text."}])
    changed = settings.model_copy(update={"eval_files": [str(text)]})
    with pytest.raises(UserError, match="holds plain text alone, which asks nothing"):
        read_eval_files(changed, silent())


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read: No such file"), ("def own(:", "cannot be run: SyntaxError")],
)
def test_a_metric_whose_file_is_missing_or_wrong_is_refused_before_a_server_is_there(
    settings: Settings, tmp_path: Path, text: str | None, said: str
) -> None:
    file = tmp_path / "own.py"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        read_eval_files(settings.model_copy(update={"metrics": [f"{file}:own"]}), silent())


def record(question: str, number: int, correct: float, **more: object) -> Record:
    scores = {"exact_match": 0.0, "final_answer": correct, "contains_answer": 1.0}
    common: dict[str, object] = {
        "source": Source("ask.json", number),
        "prompt": "?",
        "expected": "1",
        "expected_answer": "1",
        "produced": "1",
        "scores": scores,
        "stop_reason": "stop",
        "tokens": 4,
        "draw": 1,
        "question": question,
    }
    return Record(**{**common, **more})  # type: ignore[arg-type]


def test_a_question_counts_once_however_often_it_is_asked_and_answered() -> None:
    answered = [
        record("a", 1, 1.0),
        record("a", 2, 1.0),  # a copy of it
        record("b", 3, 1.0),
        record("b", 3, 0.0, draw=2, stop_reason="length", tokens=12, thought_finished=False),
        record("c", 4, 0.0),
        record("d", 5, 0.0),
    ]
    scores = scores_of(answered, 1.5)
    assert scores.scores == {"final_answer": 1.5 / 4, "exact_match": 0.0, "contains_answer": 1.0}
    line = scores.to_json()
    assert (line["eval/n"], line["eval/answers"]) == (4, 6)
    assert (line["eval/cut"], line["eval/unfinished_thoughts"]) == (1, 1)
    assert line["eval/final_answer_low"] < 0.375 < line["eval/final_answer_high"]
    assert line["eval/exact_match_low"] == 0.0 and line["eval/contains_answer_high"] == 1.0
    assert "eval/exact_match_n" not in line
    said = str(scores)
    assert [line["source"] for line in scores.shown_lines(7, 1)] == [
        str(record(name, number, 1.0).source)
        for number, name in ((1, "a"), (3, "b"), (4, "c"), (5, "d"))
    ], "one answer to each of the first questions"
    assert scores.shown_lines(7, 1)[0]["answers"] == ["1"]
    assert "final answer 37.5 % (" in said and "n = 4; 1 answer cut at the token limit" in said


def test_scores_of_other_metrics_have_their_own_n_and_interval() -> None:
    answered = [
        record("a", 1, 1.0, scores={"json_match": 1.0, "perplexity": 4.0, "mine": -1.0}),
        record("b", 2, 1.0, scores={"json_match": 0.0, "perplexity": 6.0}),
        record("c", 3, 1.0, scores={"perplexity": 5.0}),
    ]
    scores = scores_of(answered, 1.5)
    line = scores.to_json()
    assert (line["eval/json_match"], line["eval/json_match_n"]) == (0.5, 2)
    assert line["eval/perplexity"] == 5.0 and "eval/perplexity_n" not in line
    # Student's t with two degrees of freedom: 4.303 of a standard error of 1 / sqrt(3).
    assert line["eval/perplexity_high"] == pytest.approx(5.0 + 4.30265 / 3**0.5, abs=1e-4)
    assert line["eval/mine"] == -1.0 and "eval/mine_low" not in line, "one cannot tell"
    assert json.loads(json.dumps(line, allow_nan=False)) == line
    assert "perplexity 5 (2.516 to 7.484)" in str(scores) and "mine -1 (n = 1)" in str(scores)


@pytest.mark.parametrize(
    ("by", "sentence"),
    [
        ("label", 'not found to be labels. Add "labels" to METRICS'),
        ("json_match", "of EVAL_FILES are mostly no JSON"),
        ("auto", 'BEST_BY is "auto": no score is named "mine". For the first question mine retu'),
        ("mine_b", "mine returns mine_a: name one of these."),
        ("mine_a", ""),
    ],
)
def test_a_best_that_the_data_does_not_give_is_refused(
    tmp_path: Path, by: str, sentence: str
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def mine(produced):\n    return {'a': len(produced)}\n")
    metrics = [*(["auto"] if by in ("label", "json_match") else []), f"{mine}:mine"]
    settings = settings_from({"EVAL_FILES": ["ask.json"], "METRICS": metrics, "BEST_BY": by})
    asked = alpaca_sample("What?", "", "A whole sentence.", Source("ask.json", 1))
    question = Question("d", np.array([1]), "What?", 9, ((0, asked),))
    if not sentence:
        assert [scorer.name for scorer in metrics_of(settings, Questions([question])).scorers] == [
            "mine"
        ]
        return
    with pytest.raises(UserError) as caught:
        metrics_of(settings, Questions([question]))
    assert sentence in str(caught.value)
