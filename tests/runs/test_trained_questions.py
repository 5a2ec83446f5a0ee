"""What a run remembers of the questions that it was trained on."""

from pathlib import Path

import numpy as np
import pytest

from tinkersmith.data.samples import Sample, Source, Turn, alpaca_sample
from tinkersmith.runs import sketches, trained_questions
from tinkersmith.runs.folder import TRAINED_QUESTIONS_FILE, RunFolder
from tinkersmith.runs.trained_questions import (
    Damaged,
    QuestionCollector,
    TrainedQuestions,
    changed_files,
    digests_of,
    read_trained_questions,
    remember,
)


def sample(number: int, file: str, answer: str = "yes") -> Sample:
    return alpaca_sample("Is it so?", f"Statement number {number}.", answer, Source(file, number))


def collected(samples: list[Sample], train_on: str = "all") -> QuestionCollector:
    collector = QuestionCollector(train_on)
    for each in samples:
        collector.add(each)
    return collector


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


@pytest.fixture
def data(tmp_path: Path) -> str:
    file = tmp_path / "train.json"
    file.write_text("[]")
    return file.as_posix()


def known(run: RunFolder) -> TrainedQuestions:
    content = read_trained_questions(run.file(TRAINED_QUESTIONS_FILE))
    assert content is not None
    return content


def test_digests_come_back_as_they_were_written(run: RunFolder, data: str):
    samples = [sample(number, data) for number in range(1, 301)]
    remember(run, collected(samples), "d1", "d1")
    content = known(run)
    assert len(content) == 300 and content.is_complete and content.data_digests == ["d1"]
    assert [int(value) for value in content.questions] == [digests_of(each)[0] for each in samples]
    assert [int(value) for value in content.answered] == [digests_of(each)[1] for each in samples]
    assert content.source(299) == Source(data, 300)
    assert len(content.sketches) == 300 and len(content.sketches.of(5)) > 10


def test_white_space_and_thoughts_do_not_make_another_question_or_answer(data: str):
    plain = alpaca_sample("Add  them.", "1\n+ 2", "3", Source(data, 1))
    spaced = alpaca_sample("Add them. ", "1 + 2", "<think>\nhm\n</think>\n\n3", Source(data, 2))
    other = alpaca_sample("Add them.", "1 + 2", "4", Source(data, 3))
    assert digests_of(plain) == digests_of(spaced)
    assert digests_of(plain)[0] == digests_of(other)[0]
    assert digests_of(plain)[1] != digests_of(other)[1]


def test_each_answer_of_a_conversation_that_is_trained_on_is_a_question(run: RunFolder, data: str):
    turns = (
        *(Turn("user", "First?"), Turn("assistant", "One.")),
        *(Turn("user", "Second?"), Turn("assistant", "Two.", trained=False)),
        *(Turn("user", "Third?"), Turn("assistant", "Three.")),
    )
    conversation = Sample(turns, Source(data, 1))
    single = alpaca_sample("First?", "", "One.", Source(data, 9))
    remember(run, collected([conversation]), "d", "d")
    assert len(known(run)) == 2
    assert int(known(run).questions[0]) == digests_of(single)[0]
    last = collected([conversation], "last").collected(run, "d")
    assert [int(value) for value in last.questions] == [digests_of(conversation)[0]]


def test_a_resume_with_the_same_data_changes_nothing_and_other_data_is_added(
    run: RunFolder, data: str
):
    remember(run, collected([sample(1, data)]), "d1", "d1")
    before = run.file(TRAINED_QUESTIONS_FILE).read_bytes()
    remember(run, collected([sample(2, data)]), "d1", "d1")
    assert run.file(TRAINED_QUESTIONS_FILE).read_bytes() == before
    remember(run, collected([sample(2, data), sample(3, data)]), "d2", "d1")
    content = known(run)
    assert content.data_digests == ["d1", "d2"] and content.is_complete
    assert [content.source(entry).record for entry in range(3)] == [1, 2, 3]
    assert content.sketched.tolist() == [0, 1, 2] and len(content.sketches) == 3


def test_a_run_that_remembers_nothing_and_gets_other_data_says_so(run: RunFolder, data: str):
    remember(run, collected([sample(2, data)]), "d2", "d1")
    assert not known(run).is_complete
    run.file(TRAINED_QUESTIONS_FILE).unlink()
    remember(run, collected([sample(2, data)]), "d2", "d2")
    assert known(run).is_complete


@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 0.999])
def test_a_changed_byte_is_seen(run: RunFolder, data: str, place: float):
    remember(run, collected([sample(number, data) for number in range(1, 50)]), "d", "d")
    file = run.file(TRAINED_QUESTIONS_FILE)
    content = bytearray(file.read_bytes())
    for wrong in (content[: int(len(content) * place)], None):
        if wrong is None:
            wrong = bytearray(content)
            wrong[int(len(content) * place)] ^= 0x41
        file.write_bytes(wrong)
        with pytest.raises(Damaged):
            read_trained_questions(file)


def test_samples_can_be_left_out(run: RunFolder, data: str):
    samples = [sample(number, data) for number in range(1, 11)]
    content = collected(samples).collected(run, "d")
    some = content.without([(data, 3), (data, 10), ("elsewhere.json", 1)])
    assert [some.source(entry).record for entry in range(len(some))] == [1, 2, 4, 5, 6, 7, 8, 9]
    assert some.sketched.tolist() == list(range(8))
    assert np.array_equal(some.sketches.of(2), content.sketches.of(3))


def test_sketches_are_bounded_and_digests_are_not(
    run: RunFolder, data: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trained_questions, "SKETCHED_AT_MOST", 1000)
    samples = [sample(number, data) for number in range(1, 5001)]
    content = collected(samples).collected(run, "d")
    assert len(content) == 5000
    assert 400 < len(content.sketched) <= 1000 + sketches.AT_ONCE
    chosen = content.questions[content.sketched]
    assert int(chosen.max()) < 2**63
    spread = content.records[content.sketched]
    assert spread.min() < 100 and spread.max() > 4900


def test_a_data_file_that_changed_or_went_is_named(run: RunFolder, tmp_path: Path):
    names = [tmp_path / name for name in ("same.json", "changed.json", "gone.json")]
    for name in names:
        name.write_text("[1]")
    samples = [sample(1, name.as_posix()) for name in names]
    remember(run, collected([*samples, sample(1, "hf:org/name")]), "d", "d")
    names[1].write_text("[2]")
    names[2].unlink()
    assert changed_files(known(run), run.path) == {
        names[1].as_posix(): "has changed",
        names[2].as_posix(): "is not there any more, or cannot be read",
    }
