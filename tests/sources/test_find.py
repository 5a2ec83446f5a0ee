"""Names, folders, patterns and addresses stand for files; what they leave out is said."""

import os
import re
from pathlib import Path

import pytest

from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError
from tinkersmith.paths import data_files_seen_from_here, is_hub_name, seen_from_folder
from tinkersmith.sources.find import does_not_exist, find_files, look_up


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "b.jsonl",
        "a.json",
        "c.csv.gz",
        "notes.md",
        "d.PARQUET",
        "._a.json",
        "skipped.jsonl",
    ):
        write(Path("set") / name)
    write(Path("set/more/e.jsonl"))
    return tmp_path


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[]")
    return path


def test_a_folder_stands_for_its_data_files_and_what_is_left_out_is_said() -> None:
    found = look_up(["set"])
    assert [path.name for path in found.paths] == ["a.json", "b.jsonl", "c.csv.gz", "d.PARQUET"]
    assert found.notes == [
        "Left out of the folder set, because their names are not those of data: notes.md, "
        "skipped.jsonl.",
        "Left out of the folder set: the folders more/.",
    ]


def test_a_folder_without_data_says_so_and_how_to_read_those_below_it() -> None:
    write(Path("above/below/a.jsonl"))
    with pytest.raises(UserError, match=r'write "above/\*\*/\*\.jsonl"'):
        look_up(["above"])
    Path("empty").mkdir()
    with pytest.raises(
        UserError, match=r"empty is a folder without data files .*Name the files\.$"
    ):
        look_up(["empty"])


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("set/*.jsonl", ["b.jsonl", "skipped.jsonl"]),
        ("set/[ab].*", ["a.json", "b.jsonl"]),
        ("set/**/*.jsonl", ["b.jsonl", "e.jsonl", "skipped.jsonl"]),
        ("set/*", ["a.json", "b.jsonl", "c.csv.gz", "d.PARQUET"]),
        ("set/?.md", []),
    ],
)
def test_a_pattern_stands_for_its_matches_in_order(pattern: str, names: list[str]) -> None:
    found = look_up([pattern, "set/notes.md"])
    assert sorted(path.name for path in found.by_name.get(pattern, [])) == names
    assert found.missing == ([] if names else [pattern])


def test_a_pattern_is_looked_up_in_data_as_well() -> None:
    write(Path("data/x-1.json"))
    assert find_files(["x-*.json"]) == ([Path("data/x-1.json")], [])


def test_a_file_whose_name_has_the_signs_of_a_pattern_is_that_file() -> None:
    write(Path("set/[ab].json"))
    assert find_files(["set/[ab].json"])[0] == [Path("set/[ab].json")]


def test_named_twice_is_an_error_and_an_overlap_of_patterns_is_said() -> None:
    with pytest.raises(UserError, match="named twice"):
        look_up(["set/a.json", "./set/a.json"])
    with pytest.raises(UserError, match="named twice"):
        look_up(["set", "set"])
    found = look_up(["set/b.jsonl", "set/*.json*"])
    assert [path.name for path in found.paths] == ["b.jsonl", "a.json"]
    assert found.notes[-1] == "set/*.json*: 1 file was named before, and is read once."
    Path("link.json").symlink_to("set/a.json")
    with pytest.raises(UserError, match="named twice"):
        look_up(["set/a.json", "link.json"])


def test_a_home_folder_and_a_file_address_are_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert find_files(["~/set/a.json"])[0] == [folder / "set/a.json"]
    write(folder / "with space.json")
    address = (folder / "with space.json").as_uri()
    assert "%20" in address
    assert find_files([address])[0] == [folder / "with space.json"]
    with pytest.raises(UserError, match="on another machine"):
        look_up(["file://server/share/a.json"])


@pytest.mark.parametrize("name", ["set/a.json ", '"set/a.json"', " 'set/a.json'", "“set/a.json”"])
def test_spaces_and_quotation_marks_around_a_name_are_forgiven_and_said(name: str) -> None:
    found = look_up([name])
    assert found.paths == [Path("set/a.json")]
    assert found.notes == [f'Read set/a.json for the name "{name}".']


@pytest.mark.skipif(os.name == "nt", reason="these names exist on Windows")
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("set\\a.json", "; with forward slashes it is set/a.json)"),
        ("C:\\data\\a.json", "; C: is a drive of Windows; under WSL it is /mnt/c/data/a.json)"),
        ("~no_such_user/a.json", "; there is no user no_such_user)"),
    ],
)
def test_a_name_of_another_system_gets_a_hint(name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        look_up([name])
    assert hint in str(caught.value)
    assert hint in does_not_exist([name])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("https://example.com/a.json", 'Download it first, for example with: curl -L -O "https://'),
        ("HTTP://example.com/a.json", "an address of http, and no file"),
        ("s3://bucket/a.json", 'with: aws s3 cp "s3://bucket/a.json" .'),
        ("gs://bucket/a.json", "gcloud storage cp"),
        ("hdfs://node/a.json", "Copy the file to this machine"),
        (
            "https://huggingface.co/datasets/org/name/tree/main",
            "Name the data set itself: hf:org/name",
        ),
        ("hf://datasets/org/name", "hf:org/name"),
        ("https://modelscope.cn/datasets/org/name", "ms:org/name"),
    ],
)
def test_an_address_on_the_network_is_refused_with_the_way_out(name: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        look_up(["set/a.json", name])
    assert sentence in str(caught.value)


def test_data_sets_of_hubs_are_names_and_files_of_that_name_go_first() -> None:
    assert find_files(["hf:org/name", "ms:org/name/part:train", "set/a.json"])[0] == [
        Path("hf:org/name"),
        Path("ms:org/name/part:train"),
        Path("set/a.json"),
    ]
    assert not is_hub_name("hf:name") and not is_hub_name("hf:a/b/c/d") and not is_hub_name("x:a/b")
    assert look_up(["hf:name", "set/a.json"]).missing == ["hf:name"]


def test_patterns_folders_and_addresses_of_a_settings_file_start_from_its_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = folder / "my [project]"
    write(project / "data" / "x-1.jsonl")
    write(project / "own" / "y.jsonl")
    names = ["x-*.jsonl", "own", "own/*.jsonl", "hf:org/name", "https://example.com/a.json", "~/a"]
    for here in (folder, folder / "set", project / "data"):
        monkeypatch.chdir(here)
        seen = data_files_seen_from_here(project, names)
        assert seen[3:] == names[3:]
        files = [[path.resolve() for path in find_files([name])[0]] for name in seen[:3]]
        assert files == [
            [project / "data" / "x-1.jsonl"],
            [project / "own" / "y.jsonl"],
            [project / "own" / "y.jsonl"],
        ]
    monkeypatch.chdir(project)
    run = project / "runs" / "one"
    stored = [seen_from_folder(run, name) for name in ("own/*.jsonl", "hf:org/name")]
    assert stored == ["../../own/*.jsonl", "hf:org/name"]


def test_a_saved_data_set_is_its_arrow_files(tmp_path: Path) -> None:
    split = tmp_path / "ds" / "train"
    split.mkdir(parents=True)
    for name in ("data-00000-of-00001.arrow", "state.json", "dataset_info.json"):
        (split / name).write_text("{}")
    (tmp_path / "ds" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    for name in (str(split), f"{split}/*"):
        assert [path.name for path in look_up([name]).paths] == ["data-00000-of-00001.arrow"]
    with pytest.raises(UserError) as error:
        look_up([str(tmp_path / "ds")])
    assert f'write "{tmp_path}/ds/**/*.arrow"' in str(error.value)
    assert f'one split of this data set, write "{split}"' in str(error.value)


def test_a_new_project_is_told_how_to_make_its_training_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    advice = f"Make it from your data with: {command_line('split')}"
    with pytest.raises(UserError, match=re.escape(advice)):
        look_up(["data/train_set.json"])
    with pytest.raises(UserError, match="Put a file there, or correct the name"):
        look_up(["data/train_set.json", "data/other.json"])
