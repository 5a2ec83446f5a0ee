"""Numbers with their nouns: "1 sample", "2,300 samples"."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """`number` and `noun`, or `plural` if that differs from `noun` with an "s"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
