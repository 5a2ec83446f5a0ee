"""Data sets of hubs come through the hub's own library, and its errors become sentences."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinkersmith.errors import UserError
from tinkersmith.sources import hub
from tinkersmith.sources import records as records_module
from tinkersmith.sources.records import iterate_records, read_records

datasets: Any = pytest.importorskip("datasets")

ROWS = [
    {"instruction": "q", "output": "a", "messages": [{"role": "user", "content": "x"}]},
    {"instruction": "r", "output": None, "messages": []},
]
AS_JSON = [ROWS[0], {"instruction": "r", "messages": []}]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def hub_with(
    monkeypatch: pytest.MonkeyPatch, *splits: str
) -> list[tuple[str, dict[str, str | None]]]:
    """Let the library give real data sets with these splits; what it was asked for."""
    asked: list[tuple[str, dict[str, str | None]]] = []

    def load(repository: str, /, **options: Any) -> Any:
        asked.append((repository, options))
        whole = datasets.Dataset.from_list(ROWS)
        if options["split"]:
            return whole
        return datasets.DatasetDict(dict.fromkeys(splits, whole))

    monkeypatch.setattr(datasets, "load_dataset", load)
    modelscope = types.ModuleType("modelscope")
    msdatasets = types.ModuleType("modelscope.msdatasets")
    msdatasets.MsDataset = types.SimpleNamespace(load=load)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", modelscope)
    monkeypatch.setitem(sys.modules, "modelscope.msdatasets", msdatasets)
    return asked


def test_the_only_split_is_read_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub_with(monkeypatch, "test")
    read = read_records(Path("hf:org/name"))
    assert (read.records, read.notes) == (AS_JSON, ())
    assert list(iterate_records(Path("hf:org/name"))) == AS_JSON
    assert asked[0] == ("org/name", {"split": None, "name": None})


def test_train_is_read_of_several_splits_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_with(monkeypatch, "train", "test", "dev")
    notes = read_records(Path("hf:org/name")).notes
    assert notes == ('hf:org/name: the split "train" was read, and not test, dev.',)


def test_without_train_a_split_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_with(monkeypatch, "a", "b")
    with pytest.raises(UserError, match=r"has the splits a, b\. Name one .* hf:org/name:a"):
        read_records(Path("hf:org/name"))


def test_subset_and_split_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub_with(monkeypatch)
    read_records(Path("hf:org/name/part:dev"))
    read_records(Path("ms:org/name/part:dev"))
    assert asked == [
        ("org/name", {"split": "dev", "name": "part"}),
        ("org/name", {"split": "dev", "subset_name": "part", "trust_remote_code": False}),
    ]


def test_a_data_set_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_with(monkeypatch, "train")
    monkeypatch.setattr(records_module, "most_bytes", lambda: 10)
    with pytest.raises(
        UserError, match=r"hf:org/name holds more than .*tinkersmith convert hf:org"
    ):
        read_records(Path("hf:org/name"))


def test_a_folder_of_that_name_is_not_taken_for_the_data_set() -> None:
    Path("org/name").mkdir(parents=True)
    with pytest.raises(UserError, match="there is org/name on this machine as well"):
        read_records(Path("hf:org/name"))


@pytest.mark.parametrize(("name", "library"), [("hf:a/b", "datasets"), ("ms:a/b", "modelscope")])
def test_without_its_library_a_name_says_how_to_install_it(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=r"Install it with: pip install 'tinkersmith\[hub\]'"):
        read_records(Path(name))


def failing(error: Callable[[], BaseException]) -> Callable[..., Any]:
    def load(*_: object, **__: object) -> Any:
        raise error()

    return load


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            lambda: ConnectionError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)"),
            "is not on this machine, and HF_HUB_OFFLINE or HF_DATASETS_OFFLINE forbids",
        ),
        (
            lambda: ConnectionError("Couldn't reach 'a/b' on the Hub (LocalEntryNotFoundError)"),
            "cannot be downloaded: Hugging Face does not answer. Check the network",
        ),
        (
            lambda: ValueError(
                "Config name is missing.\nPlease pick one among the available configs: "
                "['main', 'socratic']\nExample of usage: ..."
            ),
            "has several subsets: main, socratic. Name one of them, such as hf:a/b/main",
        ),
        (
            lambda: ValueError("Unknown split \"x\". Should be one of ['train', 'test']."),
            'Unknown split "x". Should be one of',
        ),
        (
            lambda: datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist"),
            "does not exist on Hugging Face, or is not public",
        ),
        (lambda: RuntimeError("odd\nthing"), "cannot be read from Hugging Face: odd thing."),
        (lambda: SystemExit(3), "cannot be read from Hugging Face"),
    ],
)
def test_errors_of_the_library_become_sentences(
    error: Callable[[], BaseException], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", failing(error))
    monkeypatch.setattr(hub, "hub_unreached", lambda kind, name: None)
    with pytest.raises(UserError) as caught:
        read_records(Path("hf:a/b"))
    assert str(caught.value).startswith("hf:a/b") and sentence in str(caught.value)
    assert "\n" not in str(caught.value)
