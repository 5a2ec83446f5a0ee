"""Which data can be improved on, and what is refused before anything is sampled."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.sample_files import write
from tests.support.small_run import SmallRun, small_run
from tinkersmith.data.samples import Source, alpaca_sample
from tinkersmith.errors import UserError
from tinkersmith.improve.improve import improve
from tinkersmith.improve.preparation import is_checkable
from tinkersmith.runs.folder import all_runs

STORY = "The fox went home, since it was late and the forest was cold and dark around the pond."


@pytest.mark.parametrize(
    ("output", "answer", "checkable"),
    [
        ("2 + 2 = 4\nAnswer: 4", None, True),
        ("第一步：2 + 2 = 4\n答案：4", None, True),
        (STORY, None, False),
        (STORY, "home", True),
        ("Paris", None, True),
        ("(B)", None, True),
        ("12 km", None, True),
        (f"{STORY}\n{STORY}", None, False),
    ],
)
def test_a_sample_is_checkable_if_another_wording_can_be_right(
    output: str, answer: str | None, checkable: bool
) -> None:
    extra = {} if answer is None else {"answer": answer}
    sample = alpaca_sample("Ask.", "", output, Source("x.json", 1), extra=extra)
    assert is_checkable(sample) == checkable


@pytest.fixture(scope="module")
def small() -> SmallRun:
    return small_run()


@pytest.mark.engine
def test_what_cannot_be_improved_on_is_refused_and_leaves_no_folder(
    small: SmallRun, tmp_path: Path
) -> None:
    stories = [{"instruction": f"Tell {n}.", "output": f"{STORY} {STORY}"} for n in range(3)]
    text = str(write(tmp_path / "stories.json", stories))
    questions = [{"instruction": "Add.", "input": "90 + 1", "output": "Answer: 91"}]
    held_out = str(write(tmp_path / "held_out.json", questions))
    before = all_runs(small.settings.output_dir)

    def refused(*overrides: str, questions: str = held_out, **names: Any) -> str:
        with pytest.raises(UserError) as error:
            improve(
                small.settings,
                run=names.pop("run", str(small.run.path)),
                overrides=list(overrides),
                questions=questions,
                **names,
            )
        return str(error.value)

    assert "no question whose answer can be checked" in refused(f"DATA_FILES={text}")
    leaked = refused(questions=str(small.test_file))
    assert leaked.startswith("1 held-out question is also a training question")
    assert "--questions FILE" in refused(questions="")
    assert "has no checkpoint step-000777" in refused(checkpoint="step-000777")
    assert "There is no run nowhere" in refused(run="nowhere")
    assert 'BEST_BY is "perplexity"' in refused("METRICS=perplexity", "BEST_BY=perplexity")
    with pytest.raises(UserError, match="is no improvement"):
        improve(small.settings, resume=str(small.run.path))
    with pytest.raises(UserError, match="--rounds has no effect with --resume"):
        improve(small.settings, resume=str(small.run.path), rounds=2)
    assert all_runs(small.settings.output_dir) == before
