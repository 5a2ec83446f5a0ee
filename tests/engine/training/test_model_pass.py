"""Models without kernels: layers whose values do not fit into memory are computed twice."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.adapters import filled_adapter, gradients
from tests.support.family_twin import TinyFamily, family_datums, make_family
from tests.support.seeing_models import FAMILIES as SEEING
from tests.support.seeing_models import make_seeing, seeing_datum, seeing_sequences
from tests.support.state_families import FAMILIES as STATE_FAMILIES
from tests.support.state_families import SEEING_FAMILIES
from tests.support.window_families import FAMILIES as WINDOW_FAMILIES
from tinkersmith.engine.messages import Datum, LoraConfig, LossOutput
from tinkersmith.engine.model.base_model import BaseModel, load_base_model
from tinkersmith.engine.training import model_pass
from tinkersmith.engine.training.model_pass import ModelPass
from tinkersmith.engine.training.step import forward_backward

FAMILIES = [*STATE_FAMILIES, *SEEING_FAMILIES, *WINDOW_FAMILIES]
NO_MEMORY, ALL = 0, 2**60  # bytes


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> TinyFamily:
    return request.param


@pytest.fixture
def base(family: TinyFamily, tmp_path: Path) -> BaseModel:
    return load_base_model(family.name, make_family(family, tmp_path))


def gradients_of(
    base: BaseModel, datum: Datum, budget: int
) -> tuple[ModelPass, list[torch.Tensor]]:
    adapter = filled_adapter(base, LoraConfig(4, 0, train_unembed=False))
    one_pass = ModelPass(base, adapter, [len(datum.tokens)], backward=True, budget=budget)
    hidden = one_pass.forward(torch.from_numpy(datum.tokens))
    one_pass.backward(hidden.square())
    return one_pass, [hidden, *gradients(adapter).values()]


def test_layers_computed_twice_give_the_same_gradients(family: TinyFamily, base: BaseModel) -> None:
    datum = max(family_datums(family), key=lambda datum: len(datum.tokens))
    plain, expected = gradients_of(base, datum, ALL)
    assert plain.computed_again == 0 and plain.kept > 0
    for budget in (NO_MEMORY, plain.kept // 2):
        one_pass, found = gradients_of(base, datum, budget)
        assert 0 < one_pass.computed_again < base.layers
        assert one_pass.kept < plain.kept
        for left, right in zip(found, expected, strict=True):
            assert torch.equal(left, right)


def step(base: BaseModel, datums: list[Datum]) -> tuple[LossOutput, list[torch.Tensor]]:
    adapter = filled_adapter(base, LoraConfig(4, 0))
    output = forward_backward(base, adapter, datums, "cross_entropy", {})
    return output, list(gradients(adapter).values())


@pytest.mark.parametrize("seeing", SEEING)
def test_a_step_with_images_finds_the_same_where_no_memory_is_free(
    seeing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = replace(load_base_model(seeing, make_seeing(tmp_path, seeing)), kernels=None)
    datums = [seeing_datum(base, parts, n) for n, parts in enumerate(seeing_sequences())]
    expected, gradients_kept = step(base, datums)
    monkeypatch.setattr(model_pass, "free_memory", lambda device: NO_MEMORY)
    found, gradients_again = step(base, datums)
    assert found.metrics == expected.metrics
    for left, right in zip(gradients_again, gradients_kept, strict=True):
        assert torch.equal(left, right)


def test_it_is_said_how_many_layers_are_computed_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = load_base_model("gemma", make_family(WINDOW_FAMILIES[2], tmp_path))
    datum = family_datums(WINDOW_FAMILIES[2])[0]
    with caplog.at_level("INFO", "tinkersmith.engine"):
        gradients_of(base, datum, ALL)
        assert not caplog.messages
        gradients_of(base, datum, NO_MEMORY)
    assert caplog.messages == ["40 tokens: memory for 1 of 2 layers, the others are computed twice"]


def test_a_pass_without_gradients_keeps_nothing(tmp_path: Path) -> None:
    base = load_base_model("gemma", make_family(WINDOW_FAMILIES[2], tmp_path))
    tokens = torch.from_numpy(family_datums(WINDOW_FAMILIES[2])[0].tokens)
    one_pass = ModelPass(base, None, [len(tokens)], backward=False, budget=NO_MEMORY)
    hidden = one_pass.forward(tokens)
    assert one_pass.kept == one_pass.computed_again == 0
    assert torch.equal(hidden, base.hidden(tokens, [len(tokens)], None))
