"""Losses through the whole model: closed forms, numeric derivatives, and what is refused.

The formulas are those of https://tinker-docs.thinkingmachines.ai/tinker/losses, written anew in
float64. The derivative of each by log p is a weight, so its LoRA gradient must be that of
cross-entropy under minus this weight.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tinker.types.datum import _KEY_TO_TYPE

from tests.support.adapters import filled_adapter, gradients
from tests.support.loading import load_with_torch
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import Datum, LoraConfig, LossConfig
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.training.checks import check_datums, ignored_inputs
from tinkersmith.engine.training.losses import INPUT_NAMES, LOSSES
from tinkersmith.engine.training.step import forward, forward_backward

CONFIG = LoraConfig(4, 0)
Array = np.ndarray


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder: Path = tmp_path_factory.mktemp("model")
    return load_with_torch("tiny", make_tiny_model(folder))


def policy_datums(base: BaseModel, seed: int, off_policy: float) -> list[Datum]:
    """Datums whose sampler log-probabilities differ from the model's by about `off_policy`."""
    rng = np.random.default_rng(seed)
    datums = []
    for length in (25, 7, 40):
        tokens = rng.integers(0, 250, length + 1)
        targets = tokens[1:]
        adapter = filled_adapter(base, CONFIG)
        plain = Datum(tokens[:-1], {"target_tokens": targets})
        current = forward(base, adapter, [plain], "cross_entropy", {}).logprobs[0]
        inputs = {
            "target_tokens": targets,
            "logprobs": (current + off_policy * rng.normal(size=length)).astype(np.float32),
            "advantages": rng.normal(size=length).astype(np.float32),
        }
        datums.append(Datum(tokens[:-1], inputs))
    return datums


def as_cross_entropy(datums: list[Datum], weights: list[Array]) -> list[Datum]:
    return [
        Datum(
            datum.tokens,
            {"target_tokens": datum.inputs["target_tokens"], "weights": weight.astype(np.float32)},
        )
        for datum, weight in zip(datums, weights, strict=True)
    ]


def importance_sampling(logp: Array, old: Array, advantage: Array) -> tuple[Array, Array]:
    ratio = np.exp(logp - old)
    return -ratio * advantage, -ratio * advantage


def ppo(logp: Array, old: Array, advantage: Array) -> tuple[Array, Array]:
    ratio = np.exp(logp - old)
    free, clipped = ratio * advantage, np.clip(ratio, 0.9, 1.3) * advantage
    return -np.minimum(free, clipped), np.where(free <= clipped, -free, 0)


def cispo(logp: Array, old: Array, advantage: Array) -> tuple[Array, Array]:
    coefficient = np.clip(np.exp(logp - old), 0.9, 1.3) * advantage
    return -coefficient * logp, -coefficient


def dro(logp: Array, old: Array, advantage: Array) -> tuple[Array, Array]:
    beta = 0.05
    gap = logp - old
    return -(logp * advantage - 0.5 * beta * gap**2), -(advantage - beta * gap)


def gspo(logp: Array, old: Array, advantage: Array) -> tuple[Array, Array]:
    """The mask of `with_mask` leaves the first three tokens out of the ratio."""
    ratio = np.exp((logp - old)[3:].mean())
    free, clipped = ratio * advantage, np.clip(ratio, 0.9, 1.3) * advantage
    return -np.minimum(free, clipped), np.where(free <= clipped, -free, 0)


def stable_reinforce(logp: Array, old: Array, advantage: Array) -> tuple[Array, Array]:
    coefficient = np.minimum(np.exp(logp - old), 2) * advantage
    return -coefficient * logp, -coefficient


def with_mask(datums: list[Datum]) -> list[Datum]:
    masks = [np.r_[np.zeros(3), np.ones(len(datum.tokens) - 3)] for datum in datums]
    return [
        Datum(datum.tokens, {**datum.inputs, "sequence_ratio_mask": mask.astype(np.float32)}, True)
        for datum, mask in zip(datums, masks, strict=True)
    ]


CLIP = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.3}


@pytest.mark.parametrize(
    ("name", "config", "formula"),
    [
        ("importance_sampling", {}, importance_sampling),
        ("ppo", CLIP, ppo),
        ("cispo", CLIP, cispo),
        ("dro", {"beta": 0.05}, dro),
        ("gspo", CLIP, gspo),
        ("stable_reinforce", {}, stable_reinforce),
    ],
)
def test_a_policy_loss_and_its_lora_gradient_equal_the_float64_formula(
    base: BaseModel,
    name: str,
    config: LossConfig,
    formula: Callable[[Array, Array, Array], tuple[Array, Array]],
) -> None:
    # Above 2, weights of stable_reinforce are cut; gspo's mean of many tokens needs more.
    off_policy = 0.3 if name in ("importance_sampling", "ppo", "cispo", "dro") else 0.8
    datums = with_mask(policy_datums(base, seed=1, off_policy=off_policy))
    check_datums(base, datums, name, config)
    adapter, twin = (filled_adapter(base, CONFIG) for _ in range(2))
    output = forward_backward(base, adapter, datums, name, config)
    loss, slopes = 0.0, []
    for datum, logp in zip(datums, output.logprobs, strict=True):
        old, advantage = datum.inputs["logprobs"], datum.inputs["advantages"]
        losses, slope = formula(*(x.astype(np.float64) for x in (logp, old, advantage)))
        loss += losses.sum()
        slopes.append(slope)
    assert output.metrics["loss:sum"] == pytest.approx(loss, rel=1e-5)
    weights = [-slope for slope in slopes]
    forward_backward(base, twin, as_cross_entropy(datums, weights), "cross_entropy", {})
    expected = gradients(twin)
    for key, gradient in gradients(adapter).items():
        assert (gradient - expected[key]).norm() / expected[key].norm() < 1e-4, key


def test_importance_sampling_on_policy_is_the_sum_of_advantages(base: BaseModel) -> None:
    datums = policy_datums(base, seed=2, off_policy=0.0)
    adapter = filled_adapter(base, CONFIG)
    output = forward_backward(base, adapter, datums, "importance_sampling", {})
    total = sum(datum.inputs["advantages"].astype(np.float64).sum() for datum in datums)
    assert output.metrics["loss:sum"] == pytest.approx(-total, rel=1e-4, abs=1e-4)


def test_ppo_and_cispo_clip_at_the_documented_defaults(base: BaseModel) -> None:
    datums = policy_datums(base, seed=3, off_policy=1.5)
    adapter = filled_adapter(base, CONFIG)
    for name, low, high in (("ppo", 0.8, 1.2), ("cispo", 0.0, 4.0)):
        explicit = {"clip_low_threshold": low, "clip_high_threshold": high}
        default = forward(base, adapter, datums, name, {}).metrics["loss:sum"]
        assert forward(base, adapter, datums, name, explicit).metrics["loss:sum"] == default
        other = {"clip_low_threshold": low, "clip_high_threshold": high / 2 + 0.5}
        assert forward(base, adapter, datums, name, other).metrics["loss:sum"] != default


@pytest.mark.parametrize("only_graded", [False, True])
def test_gspo_takes_one_ratio_a_sequence_also_from_tokens_without_an_advantage(
    base: BaseModel, only_graded: bool
) -> None:
    datums = with_mask(policy_datums(base, seed=8, off_policy=0.4))
    for datum in datums:
        datum.inputs["advantages"][: len(datum.tokens) // 2] = 0  # yet they are in the ratio
    adapter = filled_adapter(base, CONFIG)
    output = forward(base, adapter, datums, "gspo", {}, only_graded=only_graded)
    logprobs = forward(base, adapter, datums, "gspo", {}).logprobs
    expected = 0.0
    for datum, logp in zip(datums, logprobs, strict=True):
        gap, advantage = logp - datum.inputs["logprobs"], datum.inputs["advantages"]
        ratio = np.exp(gap[3:].astype(np.float64).mean())
        clipped = np.clip(ratio, 0.8, 1.2)
        expected -= np.minimum(ratio * advantage, clipped * advantage).sum()
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["ppo", "cispo", "gspo"])
def test_thresholds_of_single_tokens_take_the_place_of_the_configs(
    base: BaseModel, name: str
) -> None:
    datums = with_mask(policy_datums(base, seed=9, off_policy=0.8))
    thresholds = [
        {key: np.full(len(datum.tokens), value, np.float32) for key, value in CLIP.items()}
        for datum in datums
    ]
    each = [
        Datum(datum.tokens, {**datum.inputs, **extra})
        for datum, extra in zip(datums, thresholds, strict=True)
    ]
    adapter = filled_adapter(base, CONFIG)
    by_config = forward(base, adapter, datums, name, CLIP).metrics["loss:sum"]
    assert forward(base, adapter, each, name, {}).metrics["loss:sum"] == by_config
    mixed = [each[0], *datums[1:]]  # one has its own, the others take the config's
    assert forward(base, adapter, mixed, name, CLIP).metrics["loss:sum"] == by_config
    each[1].inputs["clip_high_threshold"][4] = 0.1
    with pytest.raises(Refused, match=r"datum 1, .* is above clip_high_threshold at position 4"):
        check_datums(base, each, name, {})


def test_every_loss_takes_every_input_that_the_sdk_knows(base: BaseModel) -> None:
    datums = with_mask(policy_datums(base, seed=10, off_policy=0.1))
    assert set(_KEY_TO_TYPE) == INPUT_NAMES
    for name in LOSSES:
        config = {"beta": 0.1} if name == "dro" else {}
        needed = [
            Datum(
                datum.tokens,
                {key: value for key, value in datum.inputs.items() if key in LOSSES[name].inputs},
                True,
            )
            for datum in datums
        ]
        others = dict.fromkeys(INPUT_NAMES - LOSSES[name].used, 1.0)
        full = [
            Datum(
                datum.tokens,
                {
                    **{key: np.full(len(datum.tokens), value) for key, value in others.items()},
                    **datum.inputs,
                },
                True,
            )
            for datum in needed
        ]
        check_datums(base, full, name, config)
        assert ignored_inputs(full, name) == sorted(others)
        adapter = filled_adapter(base, CONFIG)
        losses = [forward(base, adapter, some, name, config).metrics for some in (needed, full)]
        assert losses[0] == losses[1]


def test_the_options_of_another_loss_are_taken_with_their_defaults_only(base: BaseModel) -> None:
    datums = policy_datums(base, seed=11, off_policy=0.1)
    check_datums(base, datums, "importance_sampling", {"clip_low_threshold": 0.8})
    with pytest.raises(Refused, match="'clip_low_threshold'; importance_sampling knows: none"):
        check_datums(base, datums, "importance_sampling", {"clip_low_threshold": 0.7})


def test_stable_reinforce_counts_the_weights_that_it_cut(base: BaseModel) -> None:
    datums = with_mask(policy_datums(base, seed=12, off_policy=1.0))
    output = forward(base, filled_adapter(base, CONFIG), datums, "stable_reinforce", {})
    cut = sum(
        int((np.exp(logp - datum.inputs["logprobs"]) > 2).sum())
        for datum, logp in zip(datums, output.logprobs, strict=True)
    )
    assert cut > 5
    assert output.metrics["truncated_importance_tokens:sum"] == cut


def test_the_gradient_is_the_numeric_derivative_of_the_loss(base: BaseModel) -> None:
    adapter = filled_adapter(base, CONFIG)
    rng = np.random.default_rng(4)
    tokens = rng.integers(0, 250, 61)
    weights = rng.normal(size=60).astype(np.float32)
    datums = [Datum(tokens[:-1], {"target_tokens": tokens[1:], "weights": weights})]
    forward_backward(base, adapter, datums, "cross_entropy", {})
    for name, gradient in gradients(adapter).items():
        weight = adapter.weights[name]
        before = weight.detach().clone()
        direction = gradient / gradient.norm()
        losses = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                weight.copy_(before + step * direction)
            losses.append(forward(base, adapter, datums, "cross_entropy", {}).metrics["loss:sum"])
        with torch.no_grad():
            weight.copy_(before)
        slope = (losses[0] - losses[1]) / 2e-2
        assert slope == pytest.approx(float(gradient.norm()), rel=2e-2, abs=1e-2), name


def test_several_targets_a_position_add_up_with_weights_of_either_sign(base: BaseModel) -> None:
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, 250, 30)
    targets = rng.integers(0, 250, (30, 3))
    weights = rng.normal(size=(30, 3)).astype(np.float32)
    wide, narrow = (filled_adapter(base, CONFIG) for _ in range(2))
    together = Datum(tokens, {"target_tokens": targets, "weights": weights})
    loss = forward_backward(base, wide, [together], "cross_entropy", {}).metrics["loss:sum"]
    parts = 0.0
    for column in range(3):
        inputs = {"target_tokens": targets[:, column], "weights": weights[:, column]}
        output = forward_backward(base, narrow, [Datum(tokens, inputs)], "cross_entropy", {})
        parts += output.metrics["loss:sum"]
    assert loss == pytest.approx(parts, rel=1e-4)
    expected = gradients(narrow)
    for name, gradient in gradients(wide).items():
        assert (gradient - expected[name]).norm() / expected[name].norm() < 1e-4, name


def test_weights_that_are_absent_count_one_each(base: BaseModel) -> None:
    adapter = filled_adapter(base, CONFIG)
    tokens = np.arange(50)
    bare = Datum(tokens, {"target_tokens": tokens + 1})
    ones = Datum(tokens, {"target_tokens": tokens + 1, "weights": np.ones(50, np.float32)})
    losses = [forward(base, adapter, [one], "cross_entropy", {}) for one in (bare, ones)]
    assert losses[0].metrics == losses[1].metrics
    assert losses[0].metrics["loss:sum"] == pytest.approx(-losses[0].logprobs[0].sum(), rel=1e-5)


def test_a_log_softmax_over_large_logits_keeps_its_digits(tmp_path: Path) -> None:
    base = load_with_torch("tiny", make_tiny_model(tmp_path, tied=False))
    with torch.no_grad():
        base.linears["lm_head"].weight.mul_(200)
    tokens = torch.arange(30)
    hidden = base.hidden(tokens, [30], None)
    logits = (hidden.double() @ base.linears["lm_head"].weight.double().T).log_softmax(-1)
    datum = Datum(tokens.numpy(), {"target_tokens": np.arange(1, 31)})
    ours = forward(base, None, [datum], "cross_entropy", {}).logprobs[0]
    expected = logits[torch.arange(30), torch.arange(1, 31)]
    assert expected.min() < -500
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        ("custom", {}, "'custom' is not one of cross_entropy"),
        ("gspo", {}, r"gspo needs loss_fn_inputs\['sequence_ratio_mask'\]"),
        ("stable_reinforce", {}, "needs to know which sampled sequence its tokens come from"),
        ("cross_entropy", {"beta": 1.0}, "'beta'; cross_entropy knows: none"),
        ("ppo", {"clip_low": 0.9}, "'clip_low'; ppo knows: clip_low_threshold"),
        ("ppo", {"clip_low_threshold": 2.0}, "clip_low_threshold is above"),
        ("ppo", {"clip_low_threshold": float("nan")}, "finite number"),
        ("cispo", {"clip_high_threshold": "wide"}, "finite number"),
        ("dro", {}, r"needs loss_fn_config\['beta'\]"),
    ],
)
def test_a_wrong_loss_configuration_is_refused(
    base: BaseModel, name: str, config: LossConfig, sentence: str
) -> None:
    datums = policy_datums(base, seed=6, off_policy=0.1)
    with pytest.raises(Refused, match=sentence):
        check_datums(base, datums, name, config)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"advantages": None}, r"needs loss_fn_inputs\['advantages'\]"),
        ({"rewards": np.ones(7, np.float32)}, r"there is no loss_fn_inputs\['rewards'\]"),
        ({"weights": np.full(7, np.nan, np.float32)}, "weights holds a value that is not finite"),
        ({"advantages": np.ones(6, np.float32)}, r"advantages has shape \[6\]"),
        ({"logprobs": np.full(7, np.inf, np.float32)}, "logprobs holds a value that is not finite"),
        ({"target_tokens": np.zeros(7, np.float32)}, "dtype float32; it must be int64"),
        ({"target_tokens": np.zeros((7, 2), np.int64)}, "takes one target token a position"),
    ],
)
def test_a_wrong_input_is_named_with_its_datum(
    base: BaseModel, change: dict[str, Array | None], sentence: str
) -> None:
    datums = policy_datums(base, seed=7, off_policy=0.1)
    inputs: dict[str, Array | None] = {**datums[1].inputs, **change}
    good = {key: value for key, value in inputs.items() if value is not None}
    bad = [datums[0], Datum(datums[1].tokens, good), datums[2]]
    with pytest.raises(Refused, match=f"datum 1.*{sentence}"):
        check_datums(base, bad, "ppo", {})


def test_an_empty_batch_and_a_sequence_beyond_the_context_are_refused(base: BaseModel) -> None:
    with pytest.raises(Refused, match="holds no datum"):
        check_datums(base, [], "cross_entropy", {})
    longest = np.zeros(base.max_context, np.int64)
    check_datums(base, [Datum(longest, {"target_tokens": longest})], "cross_entropy", {})
    tokens = np.zeros(base.max_context + 1, np.int64)
    with pytest.raises(Refused, match="datum 0 has 513 tokens; tiny takes at most 512"):
        check_datums(base, [Datum(tokens, {"target_tokens": tokens})], "cross_entropy", {})
