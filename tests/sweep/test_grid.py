"""Which grids are taken, and the sentence about each mistake, before anything starts."""

from pathlib import Path

import pytest

from tests.support.environment import without_cloud
from tinkersmith.cli.main import main
from tinkersmith.errors import UserError
from tinkersmith.settings.reading import settings_from
from tinkersmith.sweep.grid import combinations_of, read_grid


def test_every_combination_has_the_settings_that_it_names() -> None:
    settings = settings_from({"VALIDATION_RATIO": 0.1})
    grid = read_grid(["LEARNING_RATE=1e-4,3e-4", "lora_rank=8,32"], settings)
    assert grid == {"LEARNING_RATE": [1e-4, 3e-4], "LORA_RANK": [8, 32]}
    found = combinations_of(grid, settings)
    assert [(c.settings.learning_rate, c.settings.lora_rank) for c in found] == [
        (1e-4, 8),
        (1e-4, 32),
        (3e-4, 8),
        (3e-4, 32),
    ]
    assert found[0].label == "LEARNING_RATE=0.0001 LORA_RANK=8"
    assert all(c.settings.validation_ratio == 0.1 for c in found)


def test_lists_flags_and_templates_are_values_too() -> None:
    settings = settings_from({})
    grid = read_grid(
        [
            "DATA_FILES=[a.json,b.json],[c.json]",
            "TRUNCATE_LONG_SEQUENCES=yes,no",
            "PROMPT_TEMPLATE=chat,instruction",
            "LR_SCHEDULE=linear,cosine",
            "ADAM_BETAS=[0.9,0.95],[0.9,0.999]",
            "TRAIN_UNEMBED=yes,no",
        ],
        settings,
    )
    assert grid["DATA_FILES"] == [["a.json", "b.json"], ["c.json"]]
    assert grid["TRUNCATE_LONG_SEQUENCES"] == [True, False]
    assert grid["PROMPT_TEMPLATE"] == ["chat", "instruction"]
    assert grid["ADAM_BETAS"] == [[0.9, 0.95], [0.9, 0.999]]
    assert len(combinations_of(grid, settings)) == 64


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        (["LEARNING_RATE"], "--grid LEARNING_RATE has no values"),
        (["LEARNING_RATE="], "--grid LEARNING_RATE= has no values"),
        (["LEARNING_RAT=1"], "--grid: LEARNING_RAT is not a setting; did you mean LEARNING_RATE?"),
        (["LORA_RANK=8,x"], "--grid LORA_RANK=x: LORA_RANK is 'x'; it must be a whole number"),
        (["LORA_RANK=8,0"], "--grid LORA_RANK=0: LORA_RANK is 0; it must be between 1 and 512"),
        (["LORA_RANK=8", "LORA_RANK=16"], "--grid names LORA_RANK twice"),
        (["LEARNING_RATE=1e-4,0.0001"], "--grid names LEARNING_RATE=0.0001 twice"),
        (["SEED=1,2"], "with --seeds 3"),
        (["BEST_BY=final_answer"], "with --by METRIC"),
        (["INITIAL_CHECKPOINT=a,b"], "all runs of a sweep begin with the same weights"),
        (["LORA_ALPHA=16,32"], "--grid: LORA_ALPHA is not a setting: a server of this API"),
        (["OUTPUT_DIR=a,b"], "--grid OUTPUT_DIR: runs that differ in OUTPUT_DIR cannot be"),
        (["EVAL_FILES=a,b"], "--grid EVAL_FILES: runs that differ in EVAL_FILES cannot be"),
    ],
)
def test_a_wrong_entry_is_one_sentence_that_names_it(entries: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        read_grid(entries, settings_from({}))
    assert sentence.replace("'", '"') in str(refused.value).replace("'", '"')


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "A sweep needs --grid"),
        (["--grid", "LORA_RANK=4,8"], "nothing is measured. Set VALIDATION_RATIO"),
        (["--grid", "LORA_RANK=4", "--by", "validation_loss"], "--by validation_loss: BEST_BY is"),
        (["--grid", "LORA_RANK=4,8", "--by", "final_anser"], "did you mean"),
        (["--grid", "LORA_RANK=4", "--set", "VALIDATION_RATIO=.1"], "which is one run"),
        (
            ["--grid", "LORA_RANK=4,8", "--seeds", "0", "--set", "VALIDATION_RATIO=.1"],
            "--seeds is 0; it must be between 1 and 100.",
        ),
        (
            ["--grid", "LORA_RANK=4,8", "--parallel", "0", "--set", "VALIDATION_RATIO=.1"],
            "--parallel is 0; it must be between 1 and 32",
        ),
        (
            ["--grid", "LORA_RANK=4,8", "--seeds", "100", "NUM_EPOCHS=1,2,3", "--set", "X=1"],
            "unrecognized arguments",
        ),
        (
            ["--grid", "LORA_RANK=4,8", "--name", "a/b", "--set", "VALIDATION_RATIO=.1"],
            "--name is 'a/b'; it must have at most 60 letters",
        ),
        (["--resume", "none"], "There is no sweep none in runs. The sweeps there: none."),
        (
            [
                *("--grid", "NUM_EPOCHS=1,2", "LORA_RANK=4,8", "--seeds", "100"),
                *("--set", "VALIDATION_RATIO=.1", "--set", "DATA_FILES=gone.json"),
                *("--grid", "BATCH_SIZE=1,2"),
            ],
            "make 800 runs, and a sweep has at most 500",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_starts(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_cloud(monkeypatch)
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["sweep", *words])
    except SystemExit as error:  # argparse
        code = error.code
    assert code in (1, 2)
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "no folder and no engine"
