"""What the command train does when the run is finished."""

import pytest

from tinkersmith.cli.train import offer_export
from tinkersmith.export import export
from tinkersmith.settings.reading import settings_from

PATH = "tinker://run/weights/step-000400"


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(143)])
def test_an_export_that_a_signal_ends_says_how_to_export_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ending: BaseException
) -> None:
    def interrupted(*arguments: object, **named: object) -> None:
        raise ending

    monkeypatch.setattr(export, "export_model", interrupted)
    with pytest.raises(type(ending)):
        offer_export("merged", PATH, settings_from({"OUTPUT_DIR": "elsewhere"}))
    said = capsys.readouterr().out
    assert "Stopped. The run is finished; export it with: " in said
    assert f"--model-path {PATH} --set OUTPUT_DIR=elsewhere" in said


def test_without_an_export_the_command_for_it_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    offer_export("no", PATH, settings_from({}), options=())
    assert capsys.readouterr().out.startswith("Export   ")
