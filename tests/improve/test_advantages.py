"""Advantages of groups, and the datums that carry them, against plain twins."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from tinkersmith.improve.advantages import group_advantages, policy_datum


@given(st.lists(st.floats(0, 1), min_size=1, max_size=16))
def test_an_advantage_is_the_reward_less_the_mean_of_its_group(rewards: list[float]) -> None:
    mean = math.fsum(rewards) / len(rewards)
    for found, reward in zip(group_advantages(rewards).tolist(), rewards, strict=True):
        assert math.isclose(found, reward - mean, abs_tol=1e-12)


@given(st.floats(0, 1), st.integers(1, 16))
def test_a_group_without_spread_has_no_advantages_at_all(reward: float, count: int) -> None:
    assert not group_advantages([reward] * count).any()


def test_one_right_answer_of_four_is_above_the_others_and_is_not_scaled() -> None:
    assert group_advantages([0.0, 1.0, 0.0, 0.0]).tolist() == [-0.25, 0.75, -0.25, -0.25]


@settings(deadline=None)  # the first example imports the SDK
@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 99), st.floats(-5, 0, width=32)), min_size=1, max_size=6),
)
def test_only_the_tokens_of_the_answer_carry_the_advantage(
    prompt: list[int], answer: list[tuple[int, float]]
) -> None:
    tokens = [*prompt, *(token for token, _ in answer)]
    datum = policy_datum(prompt, tokens[len(prompt) :], [old for _, old in answer], 0.5)
    inputs = {name: data.to_numpy().tolist() for name, data in datum.loss_fn_inputs.items()}
    assert datum.model_input.to_ints() == tokens[:-1]
    for place, target in enumerate(inputs["target_tokens"]):
        assert target == tokens[place + 1]
        of_answer = place + 1 - len(prompt)
        if of_answer < 0:
            assert inputs["advantages"][place] == 0
        else:
            assert inputs["advantages"][place] == 0.5
            assert inputs["logprobs"][place] == answer[of_answer][1]
