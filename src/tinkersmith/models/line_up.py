"""The table of models that Tinker's cloud offers or offered: names, prices and dates.

The server's own list decides what can be trained. This table explains a name that is not in that
list, and says what the list leaves out. What is not known is None. The sources are public:
the cloud's pages on models, prices and deprecations, and tinker-cookbook 0.6.1.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Literal

# "switch": thinking is on or off; "effort": it has levels.
Thinking = Literal["none", "always", "switch", "effort"]

TABLE_DATE = dt.date(2026, 11, 27)  # of the names, contexts and sizes
PRICES_DATE = dt.date(2026, 9, 1)  # the day for which the prices were read
PRICES_PAGE = "https://tinker-docs.thinkingmachines.ai/tinker/models/"
RETIREMENTS_PAGE = "https://tinker-docs.thinkingmachines.ai/tinker/model-deprecations/"
# Of the prefill price, for a part of a prompt that the cloud has read shortly before.
CACHED_SHARE = 0.2
STORAGE_PRICE = 0.10  # USD for a gigabyte of checkpoints and a month

_JUNE = dt.date(2026, 6, 12)
_K32, _K64, _K128, _K256 = 32768, 65536, 131072, 262144


@dataclass(frozen=True, slots=True)
class Prices:
    """What a million tokens cost, in USD. Training is forward and backward together."""

    prefill: float | None
    sample: float | None
    train: float | None
    # The published price is half of the usual one for a limited time, so it may double.
    discounted: bool = False


@dataclass(frozen=True, slots=True)
class Retired:
    """When the cloud stopped to offer a model, and what its page recommends instead."""

    since: dt.date
    replacements: tuple[str, ...]
    mode: str = ""  # how the replacement comes closest: "non-thinking mode"
    names: tuple[str, ...] = ()  # wrong names that are in use for it


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One row of the table."""

    name: str
    family: str
    thinking: Thinking
    context: int | None  # tokens
    hidden: int  # width of the hidden states
    # Weights of an adapter of rank 1 as the cloud trains it: MLP, attention, output layer. The last
    # is the hidden size and the size of the vocabulary.
    adapter: tuple[int, int, int]
    prices: Prices | None = None
    experts: bool = False  # a mixture of experts
    chat: bool = True  # False: a base model
    gated: bool = False  # the hub wants its licence to be accepted
    # Where the tokenizer comes from if not from the hub's repository of that name.
    tokenizer: str = ""
    # The names of longer contexts and their prices: ":peft:262144".
    longer: tuple[tuple[int, Prices | None], ...] = ()
    shortest: bool = True  # False: only the names in `longer` are offered
    retired: Retired | None = None


LLAMA_TOKENIZER = "thinkingmachineslabinc/meta-llama-3-instruct-tokenizer"  # not gated
# Tokenizers of the package tml-renderers, by the names of its classes.
INKLING_TOKENIZER = "tml-renderers:O200kBaseChatTokenizer"
INKLING_2_TOKENIZER = "tml-renderers:H200kBaseChatTokenizer"
KIMI_3_TOKENIZER = "tml-renderers:KimiK3Tokenizer"

_QWEN_ADAPTER_27B = (4_325_376, 2_965_504, 253_440)
_QWEN_ADAPTER_35B = (16_281_600, 1_013_760, 250_368)
_QWEN_ADAPTER_9B = (1_572_864, 1_130_496, 252_416)
_QWEN3_ADAPTER_30B = (14_450_688, 835_584, 153_984)
_QWEN3_ADAPTER_235B = (56_598_528, 3_176_448, 156_032)
_QWEN3_ADAPTER_8B = (1_769_472, 958_464, 156_032)
_KIMI_2_ADAPTER = (144_583_680, 1_940_288, 171_008)
_LLAMA_ADAPTER_8B = (1_769_472, 851_968, 132_352)
_LLAMA_ADAPTER_70B = (8_847_360, 4_096_000, 136_448)
_NANO_ADAPTER = (11_346_176, 584_832, 133_760)
_SUPER_ADAPTER = (111_349_760, 1_675_264, 135_168)
_DEEPSEEK_3_ADAPTER = (94_307_328, 2_440_000, 136_448)
_DEEPSEEK_4_ADAPTER = (107_673_600, 1_013_760, 134_400)

_NANO = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
_LIGHTNING = "nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16"
_SUPER = "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16"
_SUPER_VL = "nvidia/NVIDIA-Nemotron-3.5-Super-VL-120B-A12B-BF16"
_ULTRA = "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16"

OFFERED: tuple[KnownModel, ...] = (
    # --- Qwen ---
    KnownModel(
        "Qwen/Qwen3-8B", "Qwen3", "switch", _K32, 4096, _QWEN3_ADAPTER_8B, Prices(0.195, 0.60, 0.44)
    ),
    KnownModel(
        "Qwen/Qwen3.5-4B",
        "Qwen3.5",
        "switch",
        _K64,
        2560,
        (1_130_496, 897_024, 250_880),
        Prices(0.33, 1.005, 0.737),
    ),
    KnownModel(
        "Qwen/Qwen3.5-9B",
        "Qwen3.5",
        "switch",
        _K64,
        4096,
        _QWEN_ADAPTER_9B,
        Prices(0.66, 1.995, 1.463),
    ),
    KnownModel(
        "Qwen/Qwen3.5-9B-Base",
        "Qwen3.5",
        "none",
        _K64,
        4096,
        _QWEN_ADAPTER_9B,
        Prices(0.66, 1.995, 1.463),
        chat=False,
    ),
    KnownModel(
        "Qwen/Qwen3.5-35B-A3B-Base",
        "Qwen3.5",
        "none",
        _K64,
        2048,
        _QWEN_ADAPTER_35B,
        Prices(0.54, 1.335, 1.177),
        experts=True,
        chat=False,
    ),
    KnownModel(
        "Qwen/Qwen3.5-397B-A17B",
        "Qwen3.5",
        "switch",
        _K64,
        4096,
        (96_030_720, 2_841_600, 252_416),
        Prices(3.00, 7.50, 6.60),
        experts=True,
        longer=((_K256, Prices(4.00, 10.00, 12.00)),),
    ),
    KnownModel(
        "Qwen/Qwen3.6-35B-A3B",
        "Qwen3.6",
        "switch",
        _K64,
        2048,
        _QWEN_ADAPTER_35B,
        Prices(0.54, 1.335, 1.177),
        experts=True,
    ),
    KnownModel(
        "Qwen/Qwen3.8-27B",
        "Qwen3.8",
        "effort",
        _K64,
        5120,
        _QWEN_ADAPTER_27B,
        Prices(1.86, 5.595, 4.103),
        longer=((_K256, Prices(2.48, 7.46, 7.46)),),
    ),
    # --- gpt-oss ---
    KnownModel(
        "openai/gpt-oss-20b",
        "gpt-oss",
        "always",
        _K32,
        2880,
        (6_842_880, 497_664, 203_968),
        Prices(0.18, 0.45, 0.396),
        experts=True,
    ),
    KnownModel(
        "openai/gpt-oss-120b",
        "gpt-oss",
        "always",
        _K32,
        2880,
        (40_124_160, 746_496, 203_968),
        Prices(0.33, 0.84, 0.737),
        experts=True,
        longer=((_K128, Prices(0.78, 1.94, 2.33)),),
    ),
    # --- Nemotron ---
    KnownModel(
        _NANO,
        "Nemotron-3",
        "switch",
        _K64,
        2688,
        _NANO_ADAPTER,
        Prices(0.195, 0.495, 0.44, discounted=True),
        experts=True,
    ),
    KnownModel(
        _LIGHTNING,
        "Nemotron-3.5",
        "switch",
        _K64,
        2688,
        _NANO_ADAPTER,
        Prices(0.195, 0.495, 0.44, discounted=True),
        experts=True,
        longer=((_K256, Prices(0.26, 0.66, None, discounted=True)),),
    ),
    KnownModel(
        _SUPER,
        "Nemotron-3",
        "switch",
        _K64,
        4096,
        _SUPER_ADAPTER,
        Prices(0.57, 1.44, 1.276, discounted=True),
        experts=True,
        longer=((_K256, Prices(0.76, 1.92, 2.32, discounted=True)),),
    ),
    KnownModel(_SUPER_VL, "Nemotron-3.5", "switch", None, 4096, _SUPER_ADAPTER, experts=True),
    KnownModel(
        _ULTRA,
        "Nemotron-3",
        "switch",
        _K64,
        8192,
        (254_529_536, 4_134_912, 139_264),
        Prices(2.49, 6.225, 5.478, discounted=True),
        experts=True,
        longer=((_K256, Prices(3.32, 8.30, 9.96, discounted=True)),),
    ),
    # --- DeepSeek ---
    KnownModel(
        "deepseek-ai/DeepSeek-V3.1",
        "DeepSeek-V3",
        "switch",
        _K32,
        7168,
        _DEEPSEEK_3_ADAPTER,
        Prices(1.695, 4.215, 3.718),
        experts=True,
    ),
    KnownModel(
        "deepseek-ai/DeepSeek-V4.1-Flash",
        "DeepSeek-V4",
        "effort",
        None,
        5120,
        _DEEPSEEK_4_ADAPTER,
        experts=True,
    ),
    KnownModel(
        "deepseek-ai/DeepSeek-V4.1-Flash-1017",
        "DeepSeek-V4",
        "effort",
        None,
        5120,
        _DEEPSEEK_4_ADAPTER,
        experts=True,
    ),
    # --- Kimi ---
    KnownModel(
        "moonshotai/Kimi-K2.6",
        "Kimi-K2",
        "switch",
        _K32,
        7168,
        _KIMI_2_ADAPTER,
        Prices(2.205, 5.49, 4.84),
        experts=True,
        longer=((_K128, Prices(5.15, 12.81, 15.40)),),
    ),
    KnownModel(
        "moonshotai/Kimi-K3.1-Pro",
        "Kimi-K3",
        "effort",
        None,
        7168,
        (766_457_856, 8_040_960, 171_008),
        experts=True,
        tokenizer=KIMI_3_TOKENIZER,
    ),
    # --- GLM ---
    KnownModel(
        "zai-org/GLM-5.3",
        "GLM-5",
        "always",
        None,
        6144,
        (121_356_288, 2_920_320, 161_024),
        experts=True,
        longer=((_K256, Prices(4.86, 12.15, 14.58)),),
        shortest=False,
    ),
    KnownModel(
        "zai-org/GLM-5.3-Flash",
        "GLM-5",
        "always",
        None,
        4096,
        (75_755_520, 2_009_088, 158_976),
        experts=True,
    ),
    # --- Inkling ---
    KnownModel(
        "thinkingmachines/Inkling",
        "Inkling",
        "effort",
        _K64,
        6144,
        (154_705_920, 3_424_256, 207_168),
        Prices(1.87, 4.68, 5.61, discounted=True),
        experts=True,
        tokenizer=INKLING_TOKENIZER,
        longer=((_K256, Prices(3.74, 9.36, 11.23, discounted=True)),),
    ),
    KnownModel(
        "thinkingmachines/Inkling-Small",
        "Inkling",
        "effort",
        _K64,
        4096,
        (64_503_808, 1_311_744, 205_120),
        Prices(0.58, 1.44, 1.73, discounted=True),
        experts=True,
        tokenizer=INKLING_TOKENIZER,
        longer=((_K256, Prices(1.16, 2.89, 3.47, discounted=True)),),
    ),
    KnownModel(
        "thinkingmachines/Inkling-2-Small",
        "Inkling-2",
        "effort",
        None,
        4608,
        (128_065_536, 2_347_008, 205_632),
        experts=True,
        tokenizer=INKLING_2_TOKENIZER,
    ),
)

_NO_THINKING = "non-thinking mode"
_VISION = "includes vision"
_QWEN3_30B_INSTRUCT = ("Qwen/Qwen3-30B-A3B-Instruct",)

# The date and the replacements are those of RETIREMENTS_PAGE. A model may answer after its date, as
# Qwen3-235B-A22B-Instruct-2507 did in September 2026 (tinker-feedback, issue 145).
RETIRED: tuple[KnownModel, ...] = (
    KnownModel(
        "Qwen/Qwen3.6-27B",
        "Qwen3.6",
        "switch",
        _K64,
        5120,
        _QWEN_ADAPTER_27B,
        # Announced on 2026-08-19 with its successor (tinker-feedback, issue 142).
        retired=Retired(dt.date(2026, 9, 2), ("Qwen/Qwen3.8-27B",)),
    ),
    KnownModel(
        "moonshotai/Kimi-K2.5",
        "Kimi-K2",
        "switch",
        _K32,
        7168,
        _KIMI_2_ADAPTER,
        experts=True,
        retired=Retired(dt.date(2026, 7, 12), ("moonshotai/Kimi-K2.6",)),
    ),
    KnownModel(
        "moonshotai/Kimi-K2-Thinking",
        "Kimi-K2",
        "always",
        None,
        7168,
        _KIMI_2_ADAPTER,
        experts=True,
        retired=Retired(_JUNE, ("moonshotai/Kimi-K2.6",)),
    ),
    KnownModel(
        "Qwen/Qwen3.5-35B-A3B",
        "Qwen3.5",
        "switch",
        None,
        2048,
        _QWEN_ADAPTER_35B,
        experts=True,
        retired=Retired(_JUNE, ("Qwen/Qwen3.6-35B-A3B",)),
    ),
    KnownModel(
        "Qwen/Qwen3.5-27B",
        "Qwen3.5",
        "switch",
        None,
        5120,
        _QWEN_ADAPTER_27B,
        # The page recommends Qwen3.6-27B, which has been replaced by Qwen3.8-27B since.
        retired=Retired(_JUNE, ("Qwen/Qwen3.6-27B",)),
    ),
    KnownModel(
        "Qwen/Qwen3-30B-A3B",
        "Qwen3",
        "switch",
        None,
        2048,
        _QWEN3_ADAPTER_30B,
        experts=True,
        retired=Retired(_JUNE, ("Qwen/Qwen3.6-35B-A3B",)),
    ),
    KnownModel(
        "Qwen/Qwen3-30B-A3B-Instruct-2507",
        "Qwen3",
        "none",
        None,
        2048,
        _QWEN3_ADAPTER_30B,
        experts=True,
        retired=Retired(_JUNE, ("Qwen/Qwen3.6-35B-A3B",), _NO_THINKING, _QWEN3_30B_INSTRUCT),
    ),
    KnownModel(
        "Qwen/Qwen3-30B-A3B-Base",
        "Qwen3",
        "none",
        None,
        2048,
        _QWEN3_ADAPTER_30B,
        experts=True,
        chat=False,
        retired=Retired(_JUNE, ("Qwen/Qwen3.5-35B-A3B-Base",)),
    ),
    KnownModel(
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
        "Qwen3-VL",
        "none",
        None,
        2048,
        _QWEN3_ADAPTER_30B,
        experts=True,
        retired=Retired(_JUNE, ("Qwen/Qwen3.6-35B-A3B",), _VISION),
    ),
    KnownModel(
        "Qwen/Qwen3-32B",
        "Qwen3",
        "switch",
        None,
        5120,
        (5_898_240, 2_490_368, 157_056),
        retired=Retired(_JUNE, ("Qwen/Qwen3.6-27B",)),
    ),
    KnownModel(
        "Qwen/Qwen3-235B-A22B-Instruct-2507",
        "Qwen3",
        "none",
        None,
        4096,
        _QWEN3_ADAPTER_235B,
        experts=True,
        retired=Retired(
            _JUNE, ("Qwen/Qwen3.5-397B-A17B",), _NO_THINKING, ("Qwen/Qwen3-235B-A22B-Instruct",)
        ),
    ),
    KnownModel(
        "Qwen/Qwen3-VL-235B-A22B-Instruct",
        "Qwen3-VL",
        "none",
        None,
        4096,
        _QWEN3_ADAPTER_235B,
        experts=True,
        retired=Retired(_JUNE, ("Qwen/Qwen3.5-397B-A17B",), _VISION),
    ),
    KnownModel(
        "Qwen/Qwen3-4B-Instruct-2507",
        "Qwen3",
        "none",
        None,
        2560,
        (1_327_104, 737_280, 154_496),
        retired=Retired(_JUNE, ("Qwen/Qwen3.5-4B",), _NO_THINKING, ("Qwen/Qwen3-4B-Instruct",)),
    ),
    KnownModel(
        "Qwen/Qwen3-8B-Base",
        "Qwen3",
        "none",
        None,
        4096,
        _QWEN3_ADAPTER_8B,
        chat=False,
        retired=Retired(_JUNE, ("Qwen/Qwen3.5-9B-Base",)),
    ),
    KnownModel(
        "meta-llama/Llama-3.3-70B-Instruct",
        "Llama-3",
        "none",
        None,
        8192,
        _LLAMA_ADAPTER_70B,
        gated=True,
        tokenizer=LLAMA_TOKENIZER,
        retired=Retired(_JUNE, (_SUPER, "Qwen/Qwen3.6-27B", "Qwen/Qwen3.6-35B-A3B"), _NO_THINKING),
    ),
    KnownModel(
        "meta-llama/Llama-3.1-70B",
        "Llama-3",
        "none",
        None,
        8192,
        _LLAMA_ADAPTER_70B,
        chat=False,
        gated=True,
        tokenizer=LLAMA_TOKENIZER,
        retired=Retired(_JUNE, ("Qwen/Qwen3.5-35B-A3B-Base",)),
    ),
    KnownModel(
        "meta-llama/Llama-3.1-8B-Instruct",
        "Llama-3",
        "none",
        None,
        4096,
        _LLAMA_ADAPTER_8B,
        gated=True,
        tokenizer=LLAMA_TOKENIZER,
        retired=Retired(_JUNE, ("Qwen/Qwen3.5-9B",), _NO_THINKING),
    ),
    KnownModel(
        "meta-llama/Llama-3.1-8B",
        "Llama-3",
        "none",
        None,
        4096,
        _LLAMA_ADAPTER_8B,
        chat=False,
        gated=True,
        tokenizer=LLAMA_TOKENIZER,
        retired=Retired(_JUNE, ("Qwen/Qwen3.5-9B-Base",)),
    ),
    KnownModel(
        "meta-llama/Llama-3.2-3B",
        "Llama-3",
        "none",
        None,
        3072,
        (946_176, 573_440, 131_328),
        chat=False,
        gated=True,
        tokenizer=LLAMA_TOKENIZER,
        retired=Retired(_JUNE, ("Qwen/Qwen3.5-9B-Base",)),
    ),
    KnownModel(
        "meta-llama/Llama-3.2-1B",
        "Llama-3",
        "none",
        None,
        2048,
        (491_520, 212_992, 130_304),
        chat=False,
        gated=True,
        tokenizer=LLAMA_TOKENIZER,
        retired=Retired(_JUNE, ("Qwen/Qwen3.5-9B-Base",)),
    ),
    KnownModel(
        "deepseek-ai/DeepSeek-V3.1-Base",
        "DeepSeek-V3",
        "none",
        None,
        7168,
        _DEEPSEEK_3_ADAPTER,
        experts=True,
        chat=False,
        retired=Retired(_JUNE, ("Qwen/Qwen3.5-35B-A3B-Base",)),
    ),
)
