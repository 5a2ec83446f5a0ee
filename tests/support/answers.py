"""Whether two samplers gave the same answers."""

from collections.abc import Sequence

import numpy as np

from tinkersmith.engine.messages import SampleResult


def assert_equal_answers(found: Sequence[SampleResult], expected: Sequence[SampleResult]) -> None:
    differing = 0
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.prompt_logprobs is None) == (theirs.prompt_logprobs is None)
        if ours.prompt_logprobs is not None and theirs.prompt_logprobs is not None:
            np.testing.assert_allclose(ours.prompt_logprobs, theirs.prompt_logprobs, atol=1e-4)
        for one, other in zip(ours.sequences, theirs.sequences, strict=True):
            if one.tokens != other.tokens:  # a draw within a rounding error of a border
                differing += 1
                continue
            assert one.stop_reason == other.stop_reason
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
    assert differing <= 1
