"""Weights of DATA_FILES: every sample is taken as often as its file's weight says, in any epoch."""

import json
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.batches.in_memory import TokensInMemory, read_into_memory
from tinkersmith.batches.mixing import MixedOrder, Share, mixing_lines
from tinkersmith.batches.order import batch_indices, steps_per_epoch
from tinkersmith.batches.source import Encoding
from tinkersmith.batches.streamed import TokenStream, open_stream
from tinkersmith.data import large_files
from tinkersmith.errors import UserError
from tinkersmith.progress import Progress
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.runs.folder import RunFolder
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.text.templates import choose_template
from tinkersmith.text.tokenizer import load_tokenizer

WEIGHTS = st.floats(0.001, 8).map(lambda weight: round(weight, 3))


# ---- the order in memory


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any),
    weights=st.lists(WEIGHTS, min_size=4, max_size=4),
    seed=st.integers(0, 2**31 - 1),
    epochs=st.integers(1, 9),
)
def test_over_some_epochs_each_sample_is_taken_as_often_as_its_weight_says(
    sizes: list[int], weights: list[float], seed: int, epochs: int
) -> None:
    names = [f"{index}.jsonl" for index in range(len(sizes))]
    weight_of = dict(zip(names, weights, strict=False))
    of_sample = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
    order = MixedOrder(of_sample, weight_of, seed)
    taken = [order.epoch_order(epoch) for epoch in range(epochs)]
    assert {len(indices) for indices in taken} == {order.count}
    counts = np.bincount(np.concatenate(taken), minlength=len(of_sample))
    for index, name in enumerate(of_sample):
        # Each epoch takes a whole number of samples of a file: that moves its weight a little.
        size = sizes[names.index(name)]
        per_epoch = max(1, round(weight_of[name] * size)) / size
        assert abs(per_epoch - weight_of[name]) <= 1 / size
        assert abs(counts[index] - per_epoch * epochs) < 1
    for indices in taken:
        in_one_epoch = np.bincount(indices, minlength=len(of_sample))
        for index, name in enumerate(of_sample):
            size = sizes[names.index(name)]
            per_epoch = max(1, round(weight_of[name] * size)) / size
            assert abs(in_one_epoch[index] - per_epoch) < 1


def test_the_weights_of_the_guide_do_what_it_says() -> None:
    names = ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    order = MixedOrder(names, {"a": 2.0, "b": 0.5, "c": 1.5}, seed=42)
    first, second, third, fourth = (Counter(order.epoch_order(e).tolist()) for e in range(4))
    assert all(epoch[a] == 2 for epoch in (first, second) for a in range(10))
    halves = [{b for b in range(10, 20) if epoch[b]} for epoch in (first, second, third, fourth)]
    assert [len(half) for half in halves] == [5, 5, 5, 5]
    assert halves[0] | halves[1] == set(range(10, 20)) == halves[2] | halves[3]
    assert all(first[c] + second[c] == 3 for c in range(20, 30))
    assert sorted(first[c] for c in range(20, 30)) == [1] * 5 + [2] * 5
    assert first.total() == 20 + 5 + 15 == order.count


def test_the_weight_one_is_the_order_without_weights() -> None:
    order = MixedOrder(["a"] * 30 + ["b"] * 20, {"a": 1.0, "b": 1.0}, seed=7)
    for step in range(14):
        epoch, place = divmod(step, steps_per_epoch(50, 8))
        mixed = order.epoch_order(epoch)[place * 8 : (place + 1) * 8]
        assert mixed.tolist() == batch_indices(50, 8, 7, step).tolist()


def test_a_part_is_no_pattern_of_the_file() -> None:
    # Data in pairs: every other sample would be the same half of each pair.
    taken = MixedOrder(["a"] * 1000, {"a": 0.5}, seed=1).epoch_order(0)
    assert 180 < sum(taken % 2 == 0) < 320
    assert 180 < sum(taken < 500) < 320


def test_every_chunk_of_a_large_file_gives_its_share_to_every_epoch() -> None:
    share = Share("a", 1_000_003, 0.01)
    positions = np.arange(share.samples)
    for epoch in (0, 1, 57):
        times = share.times(positions, epoch)
        assert times.sum() == share.taken == 10_000
        of_chunks = times[:1_000_000].reshape(100, 10_000).sum(axis=1)
        assert of_chunks.min() >= 97 and of_chunks.max() <= 103


def test_what_an_epoch_takes_is_said() -> None:
    shares = [Share("a.jsonl", 1000, 2.0), Share("b.jsonl", 1000, 0.5)]
    assert mixing_lines(shares) == [
        "An epoch takes 2 x 1,000 samples of a.jsonl and 500 of 1,000 samples of b.jsonl: 2,500 in "
        "all, less those that are too long.",
        "Where it takes a part of the samples, the next epoch takes other ones.",
    ]
    more = [Share("c", 10, 1.5), Share("d", 1, 0.001), Share("e", 0, 3.0), Share("f", 2, 1.0)]
    assert mixing_lines(more)[0] == (
        "An epoch takes 1 x 10 samples of c (5 of them once more), 1 x 1 sample of d and 1 x 2 "
        "samples of f: 18 in all, less those that are too long."
    )
    assert len(mixing_lines([Share("a", 3, 2.0)])) == 1


# ---- memory and streams


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tiny_tokenizer(folder)
    return load_tokenizer(folder)


SIZES = {"a.jsonl": 37, "b.jsonl": 60, "c.jsonl": 25}
MIX = {"a.jsonl": 2.0, "b.jsonl": 0.5, "c.jsonl": 1.4}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(large_files, "_BLOCK_BYTES", 400)
    for file, count in SIZES.items():
        lines = [
            json.dumps({"instruction": f"{file} {n}?", "output": f"{n}"}) for n in range(count)
        ]
        (tmp_path / file).write_text("\n".join([*lines, lines[3], "7"]))  # a duplicate, no record
    return settings_from({"DATA_FILES": MIX, "BATCH_SIZE": 7})


def streamed(
    settings: Settings, tokenizer: TextTokenizer, first_step: int = 0
) -> tuple[TokenStream, list[str]]:
    progress = Progress(print)
    source = open_stream(settings, progress)
    template = choose_template("instruction", tokenizer, "some/model")
    data = source.tokenized(Encoding(settings, template, tokenizer, 1000), progress)
    data.start(RunFolder.create(settings.output_dir, "run", datetime.now()), first_step)
    return data, source.report()


def whole(settings: Settings, tokenizer: TextTokenizer) -> tuple[TokensInMemory, list[str]]:
    source = read_into_memory(settings)
    template = choose_template("instruction", tokenizer, "some/model")
    encoding = Encoding(settings, template, tokenizer, 1000)
    return source.tokenized(encoding, Progress(print)), source.report()


def epochs_of(data: TokenStream | TokensInMemory, count: int) -> list[Counter[str]]:
    steps = steps_per_epoch(data.count, 7)
    return [
        Counter(
            str(sample.source)
            for step in range(epoch * steps, (epoch + 1) * steps)
            for sample in data.batch(step)
        )
        for epoch in range(count)
    ]


@pytest.mark.parametrize("kind", ["memory", "stream"])
@pytest.mark.parametrize("ratio", [0.0, 0.2])
def test_memory_and_streams_take_each_file_by_its_weight(
    kind: str, ratio: float, settings: Settings, tokenizer: TextTokenizer
) -> None:
    settings = settings.model_copy(update={"validation_ratio": ratio})
    data, report = (whole if kind == "memory" else streamed)(settings, tokenizer)
    epochs = epochs_of(data, 4)
    held_out = Counter(str(sample.source) for sample in data.validation)
    assert {epoch.total() for epoch in epochs} == {data.count}
    together = sum(epochs, Counter[str]())
    assert not together.keys() & held_out.keys()
    trained = {file: SIZES[file] + 1 - sum(file in source for source in held_out) for file in SIZES}
    assert sum(trained.values()) + len(held_out) == sum(SIZES.values()) + 3
    assert data.count == sum(round(trained[file] * MIX[file]) for file in SIZES)
    for source, count in together.items():
        file = source.partition(",")[0]
        per_epoch = round(trained[file] * MIX[file]) / trained[file]
        assert abs(count - 4 * per_epoch) < 1
    said = "\n".join(report)
    assert f"An epoch takes 2 x {trained['a.jsonl']} samples of a.jsonl" in said
    assert f"{data.count:,} in all" in said
    assert "Found 3 exact duplicates" in said
    summary = data.summary()
    assert summary.training == sum(trained.values())
    assert summary.records == sum(SIZES.values()) + 6
    data.stop()


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_a_resumed_run_mixes_as_it_would_have(
    kind: str, settings: Settings, tokenizer: TextTokenizer
) -> None:
    make = whole if kind == "memory" else streamed
    data, _ = make(settings, tokenizer)
    steps = 3 * steps_per_epoch(data.count, 7)
    expected = [[str(s.source) for s in data.batch(step)] for step in range(steps)]
    for first in (0, 11, steps - 1):
        again = streamed(settings, tokenizer, first)[0] if kind == "stream" else data
        other = again if kind == "stream" else whole(settings, tokenizer)[0]
        batches = [[str(s.source) for s in other.batch(step)] for step in range(first, steps)]
        assert batches == expected[first:]
        other.stop()
    assert len({str(batch) for batch in expected}) > steps - 2
    data.stop()


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_a_chunk_that_an_epoch_leaves_out_is_tokenised_all_the_same(
    kind: str, settings: Settings, tokenizer: TextTokenizer
) -> None:
    mix = {"a.jsonl": 1.0, "b.jsonl": 0.02, "c.jsonl": 0.001}
    data, _ = (whole if kind == "memory" else streamed)(
        settings.model_copy(update={"data_files": mix}), tokenizer
    )
    assert data.summary().training == sum(SIZES.values()) + 3
    epochs = epochs_of(data, 30)
    together = sum(epochs, Counter[str]())
    assert sum(c for source, c in together.items() if source.startswith("c")) == 30
    assert len([source for source in together if source.startswith("c")]) == 26
    data.stop()


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_the_data_digest_changes_with_all_that_decides_what_is_trained_on(
    kind: str, settings: Settings, tokenizer: TextTokenizer
) -> None:
    make = whole if kind == "memory" else streamed
    changes: list[dict[str, object]] = [
        {},
        {"data_files": {**MIX, "a.jsonl": 3.0}},
        {"data_files": list(MIX)},
        {"train_on": "last"},
        {"thinking": "strip"},
        {"encoding": "utf-8"},
        {"columns": {"instruction": "instruction"}},
    ]
    digests: list[str] = []
    for change in changes:
        data, _ = make(settings.model_copy(update=change), tokenizer)
        digests.append(data.digest())
        data.stop()
    assert len(set(digests)) == len(changes)
    for file in SIZES:
        Path(file).rename(f"moved-{file}")
    moved = {f"moved-{file}": weight for file, weight in MIX.items()}
    data, _ = make(settings.model_copy(update={"data_files": moved}), tokenizer)
    assert data.digest() == digests[0]
    data.stop()


@pytest.mark.parametrize("kind", ["memory", "stream"])
@pytest.mark.parametrize("name", ["some", "some/*.jsonl"])
def test_files_of_a_folder_or_pattern_share_its_weight(
    kind: str, name: str, settings: Settings, tokenizer: TextTokenizer
) -> None:
    Path("some").mkdir()
    for file in ("a.jsonl", "b.jsonl"):
        Path(file).rename(f"some/{file}")
    mix = {"some/a.jsonl": 2.0, name: 0.5, "c.jsonl": 1.0, "gone.jsonl": 3.0}
    data, report = (whole if kind == "memory" else streamed)(
        settings.model_copy(update={"data_files": mix}), tokenizer
    )
    assert (
        f"An epoch takes 2 x 38 samples of some/a.jsonl, 30 of 61 samples of {name} and 1 x 26 "
        "samples of c.jsonl: 132 in all" in "\n".join(report)
    )
    epochs = epochs_of(data, 2)
    assert [epoch.total() for epoch in epochs] == [132, 132]
    together = sum(epochs, Counter[str]())
    assert sum(count for source, count in together.items() if "b.jsonl" in source) == 60
    assert {count for source, count in together.items() if "a.jsonl" in source} == {4}
    data.stop()
    mix = {name: 0.5, "some/a.jsonl": 2.0}
    with pytest.raises(UserError, match=r"gives some/a\.jsonl the weight 2, but a folder or pat"):
        source = read_into_memory(settings.model_copy(update={"data_files": mix}))
        source.report()
