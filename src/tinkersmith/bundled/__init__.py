"""The base model that ships with the package: it works without a download."""

from pathlib import Path

BUNDLED_MODELS: dict[str, Path] = {
    "tinkersmith/tiny-math": Path(__file__).parent / "tiny-math",
}
