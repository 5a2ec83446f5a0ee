"""Names of metrics in METRICS, and what is said about wrong ones."""

import pytest

from tinkersmith.errors import UserError
from tinkersmith.metrics.names import METRIC_NAMES, check_metric_names, user_function
from tinkersmith.settings.reading import load_settings, settings_for_file, settings_from


def test_an_unknown_name_is_one_sentence_with_all_known_ones():
    with pytest.raises(UserError) as caught:
        check_metric_names(["auto", "rouge"])
    assert "Did you mean rouge_l?" in str(caught.value)
    assert all(name in str(caught.value) for name in METRIC_NAMES)
    with pytest.raises(UserError, match=r"is no metric\. The metrics are"):
        check_metric_names(["sentiment-of-the-user"])


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "METRICS is empty"),
        (["bleu", "bleu"], 'names "bleu" twice'),
        (["auto", "exact_match"], 'names "auto" and "exact_match"'),
        (["mine.py:"], "after the colon stands the name"),
        (["mine.py:a b"], "after the colon stands the name"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(names: list[str], sentence: str):
    with pytest.raises(UserError, match=sentence):
        check_metric_names(names)


def test_a_function_of_the_users_is_told_from_a_metric():
    assert user_function("metrics/mine.py:politeness") == ("metrics/mine.py", "politeness")
    assert user_function(r"C:\work\mine.py:politeness") == (r"C:\work\mine.py", "politeness")
    assert user_function("bleu") is None


def test_the_file_of_a_function_starts_from_the_folder_of_the_settings(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "config.py").write_text('METRICS = ["auto", "mine.py:politeness"]\n')
    settings = load_settings(folder / "config.py")
    assert settings.metrics == ["auto", f"{folder}/mine.py:politeness"]
    run = folder / "runs" / "one"
    run.mkdir(parents=True)
    written = settings_for_file(settings, run)
    assert settings_from(written, folder=run).metrics == settings.metrics


@pytest.mark.parametrize("typed", ["bleu,rouge_l", "['bleu', 'rouge_l']", "[bleu, rouge_l]"])
def test_set_takes_a_list_in_every_usual_spelling(typed: str):
    assert settings_from({}, [f"METRICS={typed}"]).metrics == ["bleu", "rouge_l"]


def test_a_yaml_file_gives_metrics_and_prices(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "METRICS: [auto, judge]\nJUDGE_URL: http://localhost:8000/v1\nJUDGE_MODEL: m\n"
        "JUDGE_PRICE: {input: 0.5, output: 1.5}\n"
    )
    settings = load_settings(file)
    assert settings.metrics == ["auto", "judge"]
    assert settings.judge_price == {"input": 0.5, "output": 1.5}


@pytest.mark.parametrize("name", ["JUDGE_API_KEY", "JUDGE_KEY", "OPENAI_API_KEY"])
def test_a_key_in_the_settings_gets_the_sentence_how_a_key_is_given(name: str):
    with pytest.raises(UserError) as caught:
        settings_from({}, [f"{name}=not-a-key"])
    assert "is not a setting" in str(caught.value) and "JUDGE_API_KEY" in str(caught.value)
    assert "in the environment" in str(caught.value) and "not-a-key" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("JUDGE_MODEL=m", "JUDGE_MODEL is"),
        ("JUDGE_MODE=pairwise", "JUDGE_MODE is"),
        ("JUDGE_PRICE=input:1,output:2", "JUDGE_PRICE is"),
    ],
)
def test_a_setting_of_the_judge_without_a_judge_is_refused(override: str, sentence: str):
    with pytest.raises(UserError, match=sentence) as caught:
        settings_from({}, [override])
    assert 'METRICS does not name "judge"' in str(caught.value)


def test_a_judge_without_an_address_or_a_model_is_refused():
    with pytest.raises(UserError, match="needs JUDGE_URL"):
        settings_from({}, ["METRICS=judge"])
    with pytest.raises(UserError, match="needs JUDGE_MODEL"):
        settings_from({}, ["METRICS=judge", "JUDGE_URL=http://localhost:1/v1"])


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://user:pass@localhost/v1", "holds a name or a password"),
        ("localhost:8000/v1", "must be the address"),
        ("ftp://localhost/v1", "must be the address"),
        ("http://localhost/v1?api_key=1", "leave out what follows"),
        ("http://localhost:port/v1", "must be the address"),
    ],
)
def test_an_address_that_is_none_or_holds_a_key_is_refused(url: str, sentence: str):
    with pytest.raises(UserError, match=sentence) as caught:
        settings_from({}, ["METRICS=judge", "JUDGE_MODEL=m", f"JUDGE_URL={url}"])
    assert "pass@" not in str(caught.value)
