"""The base model that ships with the package, so that nothing has to be downloaded."""

from pathlib import Path

BUNDLED_MODELS: dict[str, Path] = {
    "tinkersmith/tiny-math": Path(__file__).parent / "tiny-math",
}
