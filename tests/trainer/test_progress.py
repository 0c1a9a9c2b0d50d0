import pytest

from trainer.progress import console, track


@pytest.mark.parametrize("width", [40, 60, 120])
def test_numbers_stay_whole_however_narrow_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name, value in (("_width", width), ("_force_terminal", True), ("is_interactive", True)):
        monkeypatch.setattr(console, name, value)
    assert list(track(range(7), "decoding training images", total=20847, done=20840)) == list(range(7))
    shown = capsys.readouterr().err
    assert "20847/20847" in shown
    assert shown.count("0:00:0") >= 2
