"""What /set takes, and what it refuses."""

import pytest

from tinkersmith.chat.settings import ChatSettings
from tinkersmith.errors import UserError


def test_settings_become_fields_of_a_request() -> None:
    settings = ChatSettings({"temperature": 0.7})
    for line in ["max_tokens = 5", "seed=3", 'stop="\\n"', "thinking=off", "temperature="]:
        settings.change(line)
    assert settings.fields() == {
        "max_tokens": 5,
        "seed": 3,
        "stop": ["\n"],
        "reasoning_effort": "none",
    }


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("temprature=1", "did you mean temperature?"),
        ("colour=1", "'colour'; there are temperature, max_tokens"),
        ("temp=1", "did you mean temperature?"),
        ("seed", "Write /set seed=VALUE"),
        ("seed=1.5", "seed is '1.5'; it must be a whole number."),
        ("temperature=hot", "temperature is 'hot'; it must be a number."),
        ("temperature=nan", "it must be a number."),
        ("top_p=inf", "it must be a number."),
        ("thinking=maybe", "it must be on or off."),
        ('stop="x', "as a JSON string"),
    ],
)
def test_a_wrong_setting_is_one_sentence(line: str, sentence: str) -> None:
    settings = ChatSettings()
    with pytest.raises(UserError) as caught:
        settings.change(line)
    assert sentence in str(caught.value)
    assert settings.fields() == {}
