"""PROMPT_TEMPLATE "auto" asks what the model says of itself, and THINKING what the data has."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.chat_families import FAMILIES, make_family_tokenizer
from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.data.samples import Sample, Source, Turn, alpaca_sample
from tinkersmith.errors import UserError
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.text.choose import decide, template_lines
from tinkersmith.text.templates import ChatTemplate, choose_template, template_from_json
from tinkersmith.text.thoughts import ThoughtCounts, count_thoughts
from tinkersmith.text.tokenizer import load_tokenizer

HERE = Source("data/train.json", 1)
PLAIN = alpaca_sample("Add.", "", "4", HERE)
THOUGHTFUL = Sample((Turn("user", "Add."), Turn("assistant", "4", thought="2 + 2")), HERE)
BASE_MODELS = """
Qwen/Qwen2.5-7B Qwen/Qwen2.5-Math-7B Qwen/Qwen2.5-Coder-7B Qwen/Qwen2-Math-1.5B
Qwen/Qwen1.5-MoE-A2.7B Qwen/Qwen2.5-0.5B Qwen/Qwen2-57B-A14B Qwen/Qwen1.5-0.5B Qwen/Qwen-7B
Qwen/Qwen2.5-Coder-32B Qwen/CodeQwen1.5-7B Qwen/Qwen3-8B-Base Qwen/Qwen3-30B-A3B-Base
Qwen/Qwen3.5-35B-A3B-Base Qwen/Qwen2-7B meta-llama/Llama-3.1-8B meta-llama/Llama-3.2-1B
meta-llama/Meta-Llama-3-8B meta-llama/Llama-2-7b-hf meta-llama/Llama-2-7b
meta-llama/Llama-4-Scout-17B-16E meta-llama/CodeLlama-7b-hf codellama/CodeLlama-7b-Python-hf
huggyllama/llama-7b meta-llama/Llama-3.1-70B meta-llama/Meta-Llama-3.1-405B-FP8
google/gemma-3-4b-pt google/gemma-2b google/gemma-2-9b google/gemma-7b google/gemma-3n-E4B
google/codegemma-2b google/gemma-3-270m mistralai/Mistral-7B-v0.1 mistralai/Mistral-7B-v0.3
mistralai/Mixtral-8x7B-v0.1 mistralai/Mixtral-8x22B-v0.1 mistralai/Mistral-Nemo-Base-2407
mistralai/Mistral-Small-24B-Base-2501 mistralai/Ministral-3-8B-Base-2512 01-ai/Yi-6B 01-ai/Yi-34B
01-ai/Yi-1.5-9B 01-ai/Yi-34B-200K 01-ai/Yi-Coder-9B deepseek-ai/deepseek-llm-7b-base
deepseek-ai/DeepSeek-V3-Base deepseek-ai/DeepSeek-V3.1-Base deepseek-ai/deepseek-coder-6.7b-base
deepseek-ai/DeepSeek-V2 deepseek-ai/DeepSeek-V2-Lite deepseek-ai/deepseek-math-7b-base
deepseek-ai/deepseek-moe-16b-base deepseek-ai/DeepSeek-Coder-V2-Base
deepseek-ai/DeepSeek-Coder-V2-Lite-Base microsoft/phi-2 microsoft/phi-1_5 microsoft/phi-1
allenai/OLMo-7B allenai/OLMo-2-1124-7B allenai/OLMo-1B-hf allenai/OLMoE-1B-7B-0924
allenai/OLMo-2-0325-32B allenai/OLMo-7B-0724-hf allenai/Olmo-3-1025-7B allenai/OLMo-7B-Twin-2T-hf
internlm/internlm-7b internlm/internlm2-7b internlm/internlm2_5-7b internlm/internlm2-base-7b
internlm/internlm2-1_8b internlm/internlm2-math-base-7b baichuan-inc/Baichuan-7B
baichuan-inc/Baichuan2-7B-Base baichuan-inc/Baichuan-13B-Base THUDM/glm-4-9b zai-org/GLM-4.5-Base
zai-org/GLM-4.5-Air-Base THUDM/GLM-4-32B-Base-0414 zai-org/glm-4-9b-hf
nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16 nvidia/Nemotron-4-340B-Base
nvidia/Minitron-8B-Base nvidia/Nemotron-H-8B-Base-8K nvidia/NVIDIA-Nemotron-Nano-9B-v2-Base
HuggingFaceTB/SmolLM2-1.7B HuggingFaceTB/SmolLM3-3B-Base HuggingFaceTB/SmolLM-135M
moonshotai/Kimi-K2-Base EleutherAI/pythia-1b gpt2 openai-community/gpt2-xl tiiuae/falcon-7b
tiiuae/Falcon3-7B-Base tiiuae/falcon-11B bigscience/bloom-7b1 ibm-granite/granite-3.3-2b-base
ByteDance-Seed/Seed-OSS-36B-Base baidu/ERNIE-4.5-21B-A3B-Base-PT bigcode/starcoder2-7b
stabilityai/stablelm-2-1_6b stabilityai/stablelm-base-alpha-7b ibm-granite/granite-7b-base
LiquidAI/LFM2-1.2B-Base TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T
openlm-research/open_llama_3b mosaicml/mpt-7b XiaomiMiMo/MiMo-7B-Base tencent/Hunyuan-7B-Pretrain
baidu/ERNIE-4.5-21B-A3B-Base-PT
"""
CHAT_MODELS = """
Qwen/Qwen3-8B Qwen/Qwen3-0.6B Qwen/Qwen3-30B-A3B Qwen/Qwen3-30B-A3B-Instruct-2507
Qwen/Qwen3-4B-Thinking-2507 Qwen/Qwen3.5-27B Qwen/Qwen3.5-35B-A3B Qwen/Qwen3.6-27B
Qwen/Qwen2.5-7B-Instruct Qwen/Qwen2.5-7B-Instruct-1M Qwen/Qwen1.5-7B-Chat
Qwen/Qwen2.5-Math-7B-Instruct Qwen/QwQ-32B Qwen/Qwen3-Coder-30B-A3B-Instruct
Qwen/Qwen3-Next-80B-A3B-Instruct Qwen/Qwen-7B-Chat meta-llama/Llama-3.1-8B-Instruct
meta-llama/Llama-2-7b-chat-hf meta-llama/Meta-Llama-3-8B-Instruct
meta-llama/Llama-3.3-70B-Instruct meta-llama/Llama-4-Scout-17B-16E-Instruct
codellama/CodeLlama-7b-Instruct-hf google/gemma-3-4b-it google/gemma-2-9b-it
google/gemma-1.1-7b-it google/gemma-3n-E4B-it google/gemma-4-31B-it google/codegemma-7b-it
mistralai/Mistral-7B-Instruct-v0.3 mistralai/Mixtral-8x7B-Instruct-v0.1
mistralai/Mistral-Nemo-Instruct-2407 mistralai/Mistral-Small-3.2-24B-Instruct-2506
mistralai/Magistral-Small-2506 mistralai/Ministral-3-14B-Reasoning-2512
mistralai/Devstral-Small-2507 01-ai/Yi-6B-Chat 01-ai/Yi-1.5-34B-Chat-16K
deepseek-ai/deepseek-llm-7b-chat deepseek-ai/DeepSeek-V3 deepseek-ai/DeepSeek-V3.1
deepseek-ai/DeepSeek-R1 deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
deepseek-ai/DeepSeek-R1-Distill-Llama-8B deepseek-ai/DeepSeek-V2.5 deepseek-ai/DeepSeek-V2-Chat
deepseek-ai/DeepSeek-V2-Lite-Chat deepseek-ai/deepseek-coder-6.7b-instruct
deepseek-ai/DeepSeek-R1-0528-Qwen3-8B deepseek-ai/DeepSeek-R1-Zero deepseek-ai/deepseek-math-7b-rl
microsoft/phi-4 microsoft/Phi-3.5-mini-instruct microsoft/Phi-4-mini-reasoning
microsoft/Phi-3-mini-4k-instruct allenai/OLMo-7B-Instruct allenai/OLMo-2-1124-7B-Instruct
allenai/OLMo-2-1124-7B-SFT allenai/OLMoE-1B-7B-0924-Instruct allenai/Olmo-3-7B-Think
allenai/Olmo-3-7B-Instruct internlm/internlm2-chat-7b internlm/internlm2_5-7b-chat
internlm/internlm3-8b-instruct internlm/internlm-chat-7b internlm/internlm2-math-plus-7b
baichuan-inc/Baichuan2-7B-Chat baichuan-inc/Baichuan-13B-Chat baichuan-inc/Baichuan-M2-32B
THUDM/glm-4-9b-chat THUDM/GLM-4-9B-0414 zai-org/GLM-4.5 zai-org/GLM-4.5-Air zai-org/GLM-4.6
zai-org/GLM-Z1-9B-0414 THUDM/chatglm3-6b openai/gpt-oss-20b openai/gpt-oss-120b
nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16 nvidia/NVIDIA-Nemotron-Nano-9B-v2
nvidia/Llama-3.1-Nemotron-Nano-8B-v1 nvidia/Llama-3_3-Nemotron-Super-49B-v1_5
HuggingFaceTB/SmolLM2-1.7B-Instruct HuggingFaceTB/SmolLM3-3B moonshotai/Kimi-K2-Instruct
moonshotai/Kimi-K2-Thinking HuggingFaceH4/zephyr-7b-beta TinyLlama/TinyLlama-1.1B-Chat-v1.0
NousResearch/Hermes-3-Llama-3.1-8B /models/mine-it/ tiiuae/falcon-7b-instruct
ibm-granite/granite-3.3-2b-instruct allenai/Llama-3.1-Tulu-3-8B XiaomiMiMo/MiMo-7B-RL
openbmb/MiniCPM4-8B LiquidAI/LFM2-1.2B ByteDance-Seed/Seed-OSS-36B-Instruct
stabilityai/stablelm-2-zephyr-1_6b baidu/ERNIE-4.5-21B-A3B-PT
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tiny_tokenizer(folder)
    return load_tokenizer(folder)


def family(name: str, folder: Path) -> TextTokenizer:
    make_family_tokenizer(folder, FAMILIES[name])
    return load_tokenizer(folder)


def test_names_alone_tell_base_models_from_others(tokenizer: TextTokenizer) -> None:
    for name in BASE_MODELS.split():
        assert decide("auto", tokenizer, name).setting == "instruction", name
    for name in CHAT_MODELS.split():
        assert decide("auto", tokenizer, name).setting == "chat", name


def test_the_ends_that_a_model_names_decide_before_its_name(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)  # ends a text at 257 <|endoftext|>, an answer at <|im_end|>

    def auto(name: str, ends: object = None, eos: str = "<|endoftext|>") -> tuple[str, str]:
        file = tmp_path / "generation_config.json"
        file.unlink(missing_ok=True)
        if ends is not None:
            file.write_text(json.dumps({"eos_token_id": ends}))
        config_file = tmp_path / "tokenizer_config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config_file.write_text(json.dumps({**config, "eos_token": eos}), encoding="utf-8")
        decision = decide("auto", load_tokenizer(tmp_path), name)
        return decision.setting, decision.reason

    special = load_tokenizer(tmp_path).special_tokens
    text, answer = special["<|endoftext|>"], special["<|im_end|>"]
    for name in ("Qwen/Qwen3-8B", "my-base", "Qwen/Qwen2.5-7B"):
        setting, reason = auto(name, [answer, text])
        assert setting == "chat" and "generation_config.json ends answers at <|im_end|>" in reason
        setting, reason = auto(name, text)
        assert setting == "instruction" and "does not end a text at <|im_end|>" in reason
        assert auto(name, answer)[0] == "chat"
        assert auto(name, [text])[0] == "instruction"
    # Without it, the tokenizer's end token speaks, and then the name.
    assert auto("Qwen/Qwen3-8B")[0] == "chat"
    assert auto("org/unheard-of-7b", eos="<|im_end|>")[0] == "chat"
    assert auto("Qwen/Qwen2.5-7B")[0] == "instruction"
    # A server may lend a base model the tokenizer of its chat model.
    assert auto("Qwen/Qwen2.5-7B", eos="<|im_end|>")[0] == "instruction"


def test_an_end_that_chats_and_texts_share_leaves_the_name_to_decide(tmp_path: Path) -> None:
    tokenizer = family("deepseek_v3_1", tmp_path)
    shared = tokenizer.special_tokens["<｜end▁of▁sentence｜>"]
    for ends in ((), (shared,)):
        own = replace(tokenizer, generation_ends=ends)
        assert decide("auto", own, "deepseek-ai/DeepSeek-V3.1").setting == "chat"
        assert decide("auto", own, "deepseek-ai/DeepSeek-V3.1-Base").setting == "instruction"


def test_a_model_without_chat_template_and_the_bundled_one_take_instruction(
    tokenizer: TextTokenizer,
) -> None:
    bare = replace(tokenizer, chat_template=None)
    assert decide("auto", bare, "Qwen/Qwen3-8B").reason == "the model has no chat template"
    assert decide("auto", tokenizer, "tinkersmith/tiny-math").setting == "instruction"
    assert decide("alpaca", tokenizer, "Qwen/Qwen3-8B").setting == "alpaca"
    broken = replace(tokenizer, chat_template="{{ 1 / 0 }}")
    assert decide("auto", broken, "Qwen/Qwen3-8B").setting == "chat"  # whose error then says why


@pytest.mark.parametrize(
    ("thinking", "samples", "thinks"),
    [
        ("auto", [PLAIN], False),
        ("auto", [THOUGHTFUL], True),
        ("auto", [THOUGHTFUL, PLAIN], True),
        ("auto", [THOUGHTFUL, PLAIN, PLAIN], False),
        ("keep", [THOUGHTFUL, PLAIN, PLAIN], True),
        ("strip", [THOUGHTFUL], False),
        ("off", [PLAIN], False),
    ],
)
def test_use_asks_for_thoughts_as_most_of_the_data_has_them(
    thinking: str, samples: list[Sample], thinks: bool, tmp_path: Path
) -> None:
    tokenizer = family("qwen3_5", tmp_path)
    counts = count_thoughts(samples)
    template = choose_template("chat", tokenizer, "m", thinking=thinking, thoughts=counts)
    assert isinstance(template, ChatTemplate) and template.thinks is thinks
    end = "<think>\n" if thinks else "<think>\n\n</think>\n\n"
    assert template.render_prompt(PLAIN).endswith("assistant\n" + end)
    again = template_from_json(json.loads(json.dumps(template.to_json())))
    assert again == template and again.render_prompt(PLAIN) == template.render_prompt(PLAIN)


def test_without_data_a_model_is_asked_as_its_template_does(tmp_path: Path) -> None:
    template = choose_template("chat", family("nemotron3", tmp_path), "m")
    assert template.render_prompt(PLAIN).endswith("<|im_start|>assistant\n<think>\n")
    assert template.render_prompt(PLAIN) == template.render_prompt(THOUGHTFUL)


def test_a_setting_that_does_not_fit_the_thoughts_of_the_data_is_an_error(
    tokenizer: TextTokenizer,
) -> None:
    thoughtful = count_thoughts([PLAIN, THOUGHTFUL, THOUGHTFUL])
    for setting in ("chat", "instruction"):
        with pytest.raises(UserError, match=r'THINKING is "off", but data/train.json, record 1'):
            choose_template(setting, tokenizer, "m", thinking="off", thoughts=thoughtful)
        for others, end in ((0, "a thought."), (1, "and so does 1 other sample."), (2, "2 other")):
            some = count_thoughts([THOUGHTFUL] * (others + 1))
            with pytest.raises(UserError, match=end):
                choose_template(setting, tokenizer, "m", thinking="off", thoughts=some)
        with pytest.raises(UserError, match='THINKING is "keep", but not one sample has a thought'):
            choose_template(
                setting, tokenizer, "m", thinking="keep", thoughts=count_thoughts([PLAIN])
            )
        choose_template(setting, tokenizer, "m", thinking="keep", thoughts=None)


def said(
    tokenizer: TextTokenizer,
    samples: list[Sample],
    thinking: str = "auto",
    setting: str = "chat",
    train_on: str = "all",
) -> str:
    counts = count_thoughts(samples, train_on)
    template = choose_template(setting, tokenizer, "m", thinking=thinking, thoughts=counts)
    decision = decide(setting, tokenizer, "m")
    return "\n".join(template_lines(template, decision, counts))


def test_a_run_says_its_template_and_its_thoughts(tmp_path: Path) -> None:
    tokenizer = family("qwen3", tmp_path / "q")
    text = said(tokenizer, [THOUGHTFUL, PLAIN, PLAIN])
    assert "Prompt template: chat (as PROMPT_TEMPLATE says)" in text
    assert "Thoughts: in 1 of 3 samples; they are trained on." in text
    assert "2 samples without a thought: written in the template's form without thoughts." in text
    assert "Evaluation, samples and export ask for answers without thoughts." in text
    assert "system text" not in text
    assert "trained to leave it empty" in said(tokenizer, [THOUGHTFUL, PLAIN], "keep")
    assert "Thoughts: removed from 1 of 1 sample" in said(tokenizer, [THOUGHTFUL], "strip")
    nothing = said(tokenizer, [PLAIN], "strip")
    assert 'THINKING is "strip", but not one sample has a thought' in nothing


def test_thoughts_that_all_text_leaves_out_are_said(tmp_path: Path) -> None:
    turns = THOUGHTFUL.turns
    talk = replace(THOUGHTFUL, turns=(*turns, *turns))
    plain_end = replace(THOUGHTFUL, turns=(*turns, *PLAIN.turns))
    samples = [talk, plain_end, THOUGHTFUL, PLAIN]
    dropping = family("qwen3", tmp_path / "q")
    text = said(dropping, samples, train_on="all_text")
    assert "Thoughts: in 3 of 4 samples; they are trained on." in text
    assert (
        "2 samples with a thought before a later question: the template leaves it out there, and "
        'TRAIN_ON "all_text" does not train it; "all" does.'
    ) in text
    for quiet in (
        said(dropping, samples),  # "all" trains each answer with its thought
        said(dropping, samples, "strip", train_on="all_text"),
        said(dropping, [THOUGHTFUL, PLAIN], train_on="all_text"),
        said(dropping, samples, setting="instruction", train_on="all_text"),
        said(family("qwen2_5", tmp_path / "p"), samples, train_on="all_text"),
    ):
        assert "leaves it out there" not in quiet


def test_a_mode_of_thinking_that_changes_nothing_is_said(tmp_path: Path) -> None:
    knows, knows_not = family("qwen3", tmp_path / "q"), family("qwen2_5", tmp_path / "p")
    same = 'THINKING is "{}", and writes what "auto" writes: the template knows no thoughts.'
    mixed = [THOUGHTFUL, PLAIN]
    for setting, tokenizer in (("chat", knows_not), ("instruction", knows)):
        assert same.format("keep") in said(tokenizer, mixed, "keep", setting)
        assert same.format("off") in said(tokenizer, [PLAIN], "off", setting)
        assert "THINKING is" not in said(tokenizer, mixed, "auto", setting)
        counts = count_thoughts(mixed)
        kept, auto = (
            choose_template(setting, tokenizer, "m", thinking=mode, thoughts=counts)
            for mode in ("keep", "auto")
        )
        for sample in mixed:
            assert kept.render_all(sample, "all") == auto.render_all(sample, "all")
    assert "THINKING is" not in said(knows, mixed, "keep")
    assert "THINKING is" not in said(knows, [PLAIN], "off")


def test_a_system_text_of_the_template_s_own_is_said(tmp_path: Path) -> None:
    text = said(family("qwen2_5", tmp_path / "q"), [PLAIN])
    assert "adds a system text of its own:\n    | You are a helper." in text
    text = said(family("llama3_2", tmp_path / "l"), [PLAIN])
    assert "    | Cutting Knowledge Date: December 2023\n    | Today Date: " in text
    assert "system text" not in said(family("gemma3", tmp_path / "g"), [PLAIN])


def test_a_template_that_knows_no_thoughts_writes_them_as_text_and_that_is_said(
    tmp_path: Path,
) -> None:
    tokenizer = family("qwen2_5", tmp_path)
    for setting in ("chat", "instruction"):
        text = said(tokenizer, [THOUGHTFUL], setting=setting)
        assert "knows no thoughts; they are written as text: <think>." in text
        assert "ask for answers" not in text
        counts = count_thoughts([THOUGHTFUL])
        template = choose_template(setting, tokenizer, "m", thoughts=counts)
        completion = template.render(THOUGHTFUL).completion
        assert completion == f"<think>\n2 + 2\n</think>\n\n4{template.end}"
        stripped = choose_template(
            setting, tokenizer, "m", thinking="strip", thoughts=counts
        ).render(THOUGHTFUL)
        assert stripped.completion == f"4{template.end}"


def test_counting_names_the_first_sample_with_a_thought() -> None:
    counts = ThoughtCounts()
    later = replace(THOUGHTFUL, source=Source("b", 7))
    for sample in (PLAIN, later, THOUGHTFUL):
        counts.add(sample)
    assert counts == ThoughtCounts(3, 2, Source("b", 7))
