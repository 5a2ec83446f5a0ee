"""Where the project and data beside it are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
S1K = ROOT.parent / "shared" / "data" / "s1k_1.1.json"  # real data, where it is at hand
