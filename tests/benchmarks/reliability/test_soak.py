"""Growth of memory and handles is seen, and a short run shows none."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.reliability.soak import BATCH, grew, soak
from benchmarks.reliability.watching import Curve, Watched, draw, figures, watched
from tests.support.processes import eventually

LEAKS_HANDLES = """
import sys
held = []
for line in sys.stdin:
    if sys.argv[1] == "leaks":
        held += [open("/dev/null") for _ in range(5)]
    print(len(held), flush=True)
"""


def of_values(*values: float) -> Curve:
    return Curve("process", list(enumerate(values)))


def test_growth_is_counted_after_the_first_quarter() -> None:
    assert of_values(1, 5, 9, *[100] * 9).growth() == 0
    assert of_values(*[7] * 3, *[100] * 3, *[105] * 3, *[120] * 3).growth() == pytest.approx(0.2)
    with pytest.raises(ValueError, match="only 11 readings"):
        of_values(*[1] * 11).growth()


@pytest.mark.parametrize("behaviour", ["leaks", "stays"])
def test_a_process_that_leaks_handles_is_seen(behaviour: str) -> None:
    command = [sys.executable, "-c", LEAKS_HANDLES, behaviour]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        watched(lambda: {"process": process.pid}, every=0.01) as curves,
    ):
        assert process.stdin is not None and process.stdout is not None
        for readings in range(24):  # each after another step of the process
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
            assert eventually(
                lambda least=readings: (
                    "process" in curves.handles and len(curves.handles["process"].points) > least
                )
            )
        process.stdin.close()
    assert grew(Watched(handles=curves.handles)) == (behaviour == "leaks")


def test_the_plot_is_an_svg_with_a_line_for_each_process(tmp_path: Path) -> None:
    curves = {"recipe": of_values(1, 2, 3), "engine": of_values(5, 4, 300)}
    draw(tmp_path / "plot.svg", "Memory & more", curves, "MB")
    root = ElementTree.parse(tmp_path / "plot.svg").getroot()
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 3]


@pytest.mark.engine
@pytest.mark.slow
def test_a_short_run_is_watched_to_its_end() -> None:
    steps = 2 * 160 // BATCH
    curves, found = soak(steps, every=0.1, samples=160)
    assert found["steps"] == steps and found["last loss"] < found["first loss"]
    assert set(curves.memory) == set(curves.handles) == {"recipe", "engine"}
    assert set(figures(curves)) == {"memory, MB", "handles"}
