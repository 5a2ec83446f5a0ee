"""p-values of several tests -> p-values that allow for their number."""

from collections.abc import Sequence


def holm(p_values: Sequence[float], among: int | None = None) -> list[float]:
    """Adjusted p-values (Holm 1979): the chance of any false alarm stays at the level.

    Args:
        among: how many tests there could have been, of which the data chose these; by default
            there were no others. Ranks among fewer tests are lower, so that the values stay valid.
    """
    count = max(len(p_values), among or 0)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, number in enumerate(order):
        highest = max(highest, min(1.0, p_values[number] * (count - rank)))
        adjusted[number] = highest
    return adjusted
