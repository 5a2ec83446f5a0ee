"""benchmarks/results/*.json -> the table in docs/explanation/speed.md: python -m benchmarks.table

A figure whose results file is not there is left out; one without a row here is named.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
BEGIN = "<!-- figures:begin (made by python -m benchmarks.table) -->\n"
END = "<!-- figures:end -->"
ENGLISH, CHINESE = "docs/explanation/speed.md", "docs/explanation/speed.zh-CN.md"
HEADS = {
    ENGLISH: "| what | measured | wanted | date |\n| --- | --- | --- | --- |\n",
    CHINESE: "| 内容 | 实测 | 目标 | 日期 |\n| --- | --- | --- | --- |\n",
}


@dataclass(frozen=True)
class Row:
    results: str  # benchmarks/results/<this>.json
    english: str
    chinese: str
    measured: Callable[[dict], str | None]  # of its "figures"; None: not in this run
    wanted: str  # numbers and signs only: it stands in both languages


SAME_ANSWERS = "answers that are the engine's"


def _small(value: float) -> str:
    return f"{value:.1e}"


def _times(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}×"


def _served(model: str, peer: str) -> Callable[[dict], str | None]:
    """How many times the tokens a second of `peer` our server has."""
    return lambda figures: _times(figures.get(model, {}).get(f"tokens/s, ours / {peer}"))


def _first_tokens(part: dict | None) -> str | None:
    if part is None:
        return None
    waits = part["tinkersmith serve"]["first token, ms"]
    return f"{waits['1 client']:.0f} / {waits['16 clients']:.0f} ms"


def _right_without_and_with(model: str) -> Callable[[dict], str | None]:
    """Right final answers of the model without and with a LoRA on its output layer."""
    return lambda figures: "; ".join(
        f"{figures[model][choice]['final_answer']:.1%}" for choice in ("without it", "with it")
    )


def _beside(model: str, place: str = "beside") -> Callable[[dict], str | None]:
    def measured(figures: dict) -> str | None:
        if model not in figures:
            return None
        times = figures[model][place]["ours / generate"]
        return " / ".join(f"{times[count]:.1f}×" for count in ("1", "8", "32"))

    return measured


def _against(
    vocabulary: str, name: str, form: Callable[[dict], str]
) -> Callable[[dict], str | None]:
    """A figure of one contestant, or, if `name` is a family, of its best setting."""

    def measured(figures: dict) -> str | None:
        part = figures["vocabularies"].get(vocabulary)
        if part is None:
            return None
        peer = part["contestants"].get(part["best setting"].get(name, name))
        return None if peer is None else form(peer)

    return measured


def _speed(peer: dict) -> str:
    return f"{peer['ours is faster, times']:.1f}×"


def _share_of_memory(peer: dict) -> str:
    return f"{1 / peer['its memory / ours, times']:.0%}"


def _slower(ours: dict) -> str:
    return f"{ours['ours is faster, times'] - 1:.0%}"


def _ours(vocabulary: str, name: str, form: str) -> Callable[[dict], str | None]:
    def measured(figures: dict) -> str | None:
        part = figures["vocabularies"].get(vocabulary)
        return part and format(part["contestants"]["tinkersmith"][name], form)

    return measured


def _of_plain(figures: dict, dtype: str) -> float:
    steps = figures["training"]
    return steps[f"plain, {dtype}"]["seconds"] / steps["tinkersmith, bfloat16"]["seconds"]


def _against_generate(case: str) -> Callable[[dict], str | None]:
    def measured(figures: dict) -> str | None:
        part = figures["cases"][case]
        best = part["contestants"][part["generate's best batch"]]
        return _speed(best)

    return measured


ROWS = [
    Row(
        "training",
        "training, vocabulary 151,936: speed against plain `transformers` + `peft`, batches of 2",
        "训练，词表 151,936：与普通 `transformers` + `peft`（每批 2 个）的速度比",
        _against("151936", "plain, batch 2 padded", _speed),
        "3.5×",
    ),
    Row(
        "training",
        "memory against it",
        "内存与它之比",
        _against("151936", "plain, batch 2 padded", _share_of_memory),
        "25%",
    ),
    Row(
        "training",
        "speed against it one sample at a time, which needs no padding",
        "与它逐个样本训练（无需补齐）的速度比",
        _against("151936", "plain, batch 1", _speed),
        "3.5×",
    ),
    Row(
        "training",
        "memory against it one sample at a time",
        "内存与它逐个样本训练之比",
        _against("151936", "plain, batch 1", _share_of_memory),
        "25%",
    ),
    Row(
        "training",
        "the same step against TRL at its best setting",
        "同一步，与 TRL（最佳设置）的速度比",
        _against("151936", "TRL", _speed),
        "4×",
    ),
    Row(
        "training",
        "how much longer it takes when the output layer is trained, too",
        "同时训练输出层时多用的时间",
        _against("151936", "tinkersmith, output layer too", _slower),
        "",
    ),
    Row(
        "training",
        "training, vocabulary 32,000: speed against plain `transformers` + `peft`, batches of 2",
        "训练，词表 32,000：与普通 `transformers` + `peft`（每批 2 个）的速度比",
        _against("32000", "plain, batch 2 padded", _speed),
        "3×",
    ),
    Row(
        "training",
        "speed against it one sample at a time, vocabulary 32,000",
        "与它逐个样本训练的速度比，词表 32,000",
        _against("32000", "plain, batch 1", _speed),
        "3×",
    ),
    Row(
        "training",
        "tokens a second, vocabulary 151,936",
        "每秒 token 数，词表 151,936",
        _ours("151936", "tokens a second", ",.0f"),
        "",
    ),
    Row(
        "training",
        "share of the machine's bf16 matrix-product peak, vocabulary 151,936",
        "占本机 bf16 矩阵乘法峰值的比例，词表 151,936",
        _ours("151936", "share of the bf16 peak", ".0%"),
        "55%",
    ),
    Row(
        "training",
        "fp32 loss and LoRA gradients against plain `transformers` + `peft`, relative, the worse",
        "fp32 损失和 LoRA 梯度与普通 `transformers` + `peft` 的相对偏差，取较大者",
        lambda figures: _small(
            max(
                figures["fp32 loss, relative difference"],
                figures["fp32 LoRA gradients, worst relative difference"],
            )
        ),
        "1e-5",
    ),
    Row(
        "without_bf16",
        "training in bfloat16 on a CPU with AVX2 alone (simulated): speed against plain"
        " `transformers` + `peft`",
        "在只有 AVX2 的 CPU（模拟）上以 bfloat16 训练：与普通 `transformers` + `peft` 的速度比",
        lambda figures: f"{_of_plain(figures, 'bfloat16'):.0f}×",
        "",
    ),
    Row(
        "without_bf16",
        "the same against it in float32, which takes twice the memory for weights",
        "同上，与它以 float32 训练（权重占两倍内存）的速度比",
        lambda figures: _times(_of_plain(figures, "float32")),
        "",
    ),
    Row(
        "sampling",
        "sampling: speed against `generate` at its best batch size, answers as long as real ones",
        "采样：与 `generate`（最佳批大小）的速度比，回答长度同真实数据",
        _against_generate("real"),
        "2.5×",
    ),
    Row(
        "sampling",
        "the same, all answers equally long",
        "同上，所有回答等长",
        _against_generate("equal"),
        "2.5×",
    ),
    Row(
        "round_trip",
        "a training step over its bare computation, model of 91,000 parameters",
        "一个训练步比单纯计算多用的时间，91,000 参数的模型",
        lambda figures: f"{figures['milliseconds']['overhead']:.1f} ms",
        "20 ms",
    ),
    Row(
        "wrong_input",
        "wrong input, from an unknown model to a zstd bomb: the slowest kind's answer",
        "错误输入（从未知模型到 zstd 炸弹）：最慢一类的应答时间",
        lambda figures: f"{max(figures['milliseconds'].values()) / 1e3:.2f} s",
        "1 s",
    ),
    Row(
        "preparation",
        "preparing data: speed against the bare tokenizer's `encode_batch`",
        "准备数据：与分词器本身的 `encode_batch` 的速度比",
        lambda figures: f"{figures['speed against encode_batch']:.0%}",
        "90%",
    ),
    Row(
        "preparation",
        "preparing data: speed against TRL",
        "准备数据：与 TRL 的速度比",
        lambda figures: _times(figures.get("speed against TRL, times")),
        "4×",
    ),
    Row(
        "large_file",
        "training on a large JSON Lines file: the recipe's peak memory",
        "用大型 JSON Lines 文件训练：训练脚本的内存峰值",
        lambda figures: (
            f"{figures['memory of the recipe, GB']['peak']:.2f} GB ({figures['gigabytes']:.1f} GB)"
        ),
        "2 GB (5 GB)",
    ),
    Row(
        "large_file",
        "the same: from the start to the first optimizer step done",
        "同上：从启动到第一个优化步完成",
        lambda figures: f"{figures['seconds until the first optimizer step is done']:.0f} s",
        "",
    ),
    Row(
        "pipeline",
        "share of the time in which a server that takes 2 s a call has work",
        "每次调用耗时 2 秒的服务器有活可干的时间比例",
        lambda figures: f"{figures['share of the time with work']:.2%}",
        "95%",
    ),
    Row(
        "start_up",
        "from the command to the first training step, bundled model",
        "从命令到第一个训练步，自带模型",
        lambda figures: f"{figures['command to first step, bundled model']['seconds']:.1f} s",
        "10 s",
    ),
    Row(
        "start_up",
        "the longest silence until then",
        "其间最长的无输出时间",
        lambda figures: (
            f"{figures['command to first step, bundled model']['longest silence, seconds']:.1f} s"
        ),
        "2 s",
    ),
    Row(
        "start_up",
        "first optimizer step after the weights are loaded, bundled model",
        "权重加载后到第一个优化步完成，自带模型",
        lambda figures: f"{figures['first step, bundled model, seconds']['first step']:.2f} s",
        "2 s",
    ),
    Row(
        "start_up",
        "`--help`, the slowest script",
        "`--help`，最慢的脚本",
        lambda figures: f"{max(figures['seconds']['--help'].values()):.2f} s",
        "",
    ),
    Row(
        "start_up",
        "splitting 2,000 samples, from start to end",
        "划分 2,000 个样本，从启动到结束",
        lambda figures: f"{figures['seconds']['data commands']['split, 2,000 samples']:.2f} s",
        "",
    ),
    Row(
        "near_duplicates",
        "near-duplicates among 100,000 samples, one process: processor seconds",
        "100,000 个样本里查找近似重复，单进程：处理器秒数",
        lambda figures: f"{figures['search']['processor seconds']:.0f} s",
        "60 s",
    ),
    Row(
        "near_duplicates",
        "peak memory of it",
        "其内存峰值",
        lambda figures: f"{figures['search']['gigabytes']:.2f} GB",
        "1 GB",
    ),
    Row(
        "near_duplicates",
        "planted near-duplicates (similarity 0.8 and more) that are found",
        "植入的近似重复（相似度 0.8 及以上）找到的比例",
        lambda figures: f"{figures['recall']:.1%}",
        "95%",
    ),
    Row(
        "near_duplicates",
        "reported pairs that are none",
        "误报的对数",
        lambda figures: f"{figures['false pairs']:,} / {figures['pairs reported']:,}",
        "0",
    ),
    Row(
        "exactness",
        "bundled model, fp32 LoRA gradients against plain `transformers` + `peft`, relative",
        "自带模型，fp32 LoRA 梯度与普通 `transformers` + `peft` 的相对偏差",
        lambda figures: _small(figures["LoRA gradients, worst relative difference"]),
        "1e-5",
    ),
    Row(
        "exactness",
        "greedy samples equal to `generate`, token for token",
        "贪心采样与 `generate` 逐 token 相同",
        lambda figures: (
            f"{figures['greedy prompts equal token for token']} / {figures['greedy prompts']}"
        ),
        "100%",
    ),
    Row(
        "demo",
        "demonstration, exact match after training, mean of 3 seeds",
        "演示，训练后完全匹配，3 个种子的平均",
        lambda figures: f"{figures['tuned, mean']['exact_match']:.1%}",
        "90%",
    ),
    Row(
        "many_clients",
        "sixteen sampling clients, answers a second against one client",
        "16 个采样客户端每秒的回答数，与 1 个客户端相比",
        lambda figures: _times(figures["this version: sixteen / one"]),
        "",
    ),
    Row(
        "many_clients",
        "training steps a second beside sixteen sampling clients, share of those alone",
        "有 16 个采样客户端时的训练步速，占单独训练的比例",
        lambda figures: f"{figures['this version: steps beside / alone']:.0%}",
        "60%",
    ),
    Row(
        "many_adapters",
        "sixteen clients of 16 adapters, answers a second against 16 clients of one; in turn",
        "16 个客户端、16 个 adapter，每秒的回答数与 16 个客户端用同一个相比；轮流进行时",
        lambda figures: (
            f"{figures['this version: sixteen adapters / one']:.0%}; "
            f"{figures['before: sixteen adapters / one']:.0%}"
        ),
        "",
    ),
    Row(
        "serving",
        "serving the bundled model, tokens a second by HTTP against `generate` at its best batch",
        "部署自带模型，经 HTTP 的每秒 token 数，与最佳批大小的 `generate` 相比",
        _served("bundled", "generate"),
        "2.0×",
    ),
    Row(
        "serving",
        "the same against `transformers serve` with continuous batching",
        "同上，与启用连续批处理的 `transformers serve` 相比",
        _served("bundled", "transformers serve --continuous-batching"),
        "2.0×",
    ),
    Row(
        "serving",
        "serving a random Qwen3 of hidden 512, against `generate` at its best batch",
        "部署 hidden 512 的随机 Qwen3，与最佳批大小的 `generate` 相比",
        _served("random Qwen3 of hidden 512", "generate"),
        "2.0×",
    ),
    Row(
        "serving",
        "the same random Qwen3 against `transformers serve` with continuous batching",
        "同一随机 Qwen3，与启用连续批处理的 `transformers serve` 相比",
        _served("random Qwen3 of hidden 512", "transformers serve --continuous-batching"),
        "2.0×",
    ),
    Row(
        "serving",
        "serving the bundled model, time to the first token with 1 / 16 clients",
        "部署自带模型，1 / 16 个客户端时首个 token 的时间",
        lambda figures: _first_tokens(figures.get("bundled")),
        "",
    ),
    Row(
        "serving",
        "64 clients that ask without a pause for 2 minutes, failed requests",
        "64 个客户端连续请求 2 分钟，失败的请求数",
        lambda figures: (
            f"{figures['load']['errors']} / {figures['load']['answers']:,}"
            if "load" in figures
            else None
        ),
        "0",
    ),
    Row(
        "beside_another",
        "sampling beside another program on all cores, bundled model, 1 / 8 / 32 prompts, against "
        "`generate` in fp32",
        "旁边有程序占满各核时的采样，自带模型，1 / 8 / 32 个提示，与 fp32 的 `generate` 相比",
        _beside("bundled"),
        "1.2×",
    ),
    Row(
        "beside_another",
        "sampling beside another program, a random Qwen3 of hidden 512 and 151,936 tokens, "
        "1 / 8 / 32 prompts, against `generate` in fp32",
        "旁边有其他程序时的采样，hidden 512、词表 151,936 的随机 Qwen3，1 / 8 / 32 个提示，"
        "与 fp32 的 `generate` 相比",
        _beside("random Qwen3 of hidden 512, vocabulary 151,936"),
        "1.2×",
    ),
    Row(
        "beside_another",
        "the same model on a quiet machine, 1 / 8 / 32 prompts, against `generate` in fp32",
        "同一模型，没有其他程序时，1 / 8 / 32 个提示，与 fp32 的 `generate` 相比",
        _beside("random Qwen3 of hidden 512, vocabulary 151,936", "alone"),
        "1.2×",
    ),
    Row(
        "dashboard",
        "dashboard, list of 200 runs, first time",
        "面板，首次列出 200 次训练",
        lambda figures: f"{figures['list_of_runs_first_seconds']:.2f} s",
        "",
    ),
    Row(
        "dashboard",
        "dashboard, curves of 100,000 steps, first time; again",
        "面板，100,000 步的曲线，首次；再次",
        lambda figures: (
            f"{figures['curves_first_seconds']:.1f} s; {figures['curves_again_seconds']:.2f} s"
        ),
        "",
    ),
    Row(
        "improving",
        "`improve`, final answer right, mean of 3 seeds, 400 questions: improved; plain",
        "`improve`，400 道题的最终答案正确率，3 个种子的平均：改进后；普通训练",
        lambda figures: (
            f"{figures['mean rate on the test set']['improved']:.1%}; "
            f"{figures['mean rate on the test set']['plain']:.1%}"
        ),
        "",
    ),
    Row(
        "improving",
        "`improve`, seeds with a significant gain over plain training, of 3",
        "`improve`，3 个种子中比普通训练显著更好的个数",
        lambda figures: str(figures["significant gains over plain"]),
        "3",
    ),
    Row(
        "improving_grpo",
        "`improve --method grpo`, the same, mean of the seeds that ran: improved; plain",
        "`improve --method grpo`，同上，已测种子的平均：改进后；普通训练",
        lambda figures: (
            f"{figures['mean rate on the test set']['improved']:.1%}; "
            f"{figures['mean rate on the test set']['plain']:.1%}"
        ),
        "",
    ),
    Row(
        "output_layer",
        "right answers of the bundled model, three seeds: TRAIN_UNEMBED off; on",
        "内置模型答对的比例，三个种子：关闭 TRAIN_UNEMBED；打开",
        _right_without_and_with("tiny-math, 1,600 samples"),
        "",
    ),
    Row(
        "output_layer",
        "the same of SmolLM2-135M-Instruct after 256 samples",
        "同上，SmolLM2-135M-Instruct，256 个样本",
        _right_without_and_with("SmolLM2-135M-Instruct, 256 samples"),
        "",
    ),
    Row(
        "sweeping",
        "six runs as one sweep, against one after another: time; CPU time",
        "六次训练作为一次扫描，与逐个训练相比：时间；CPU 时间",
        lambda figures: (
            f"{figures['sweep / in turn']:.0%}; "
            f"{figures['one sweep, CPU seconds'] / figures['in turn, CPU seconds']:.0%}"
        ),
        "",
    ),
    Row(
        "sweeping",
        "most memory of all processes: one sweep of six; one run alone",
        "所有进程的内存峰值：六次训练的一次扫描；单独一次训练",
        lambda figures: (
            f"{figures['one sweep, peak GB']:.2f} GB; {figures['in turn, peak GB']:.2f} GB"
        ),
        "",
    ),
    Row(
        "json_grammar",
        "JSON schema (nested objects), time for each token: bundled model; 151,936 tokens",
        "JSON 模式（嵌套对象），每个 token 的时间：自带模型；词表 151,936",
        lambda figures: "; ".join(
            f"{figures['masks'][name]['nested objects']['a token, median ms']:.2f} ms"
            for name in ("bundled", "151,936 tokens")
        ),
        "",
    ),
    Row(
        "json_grammar",
        "tokens a second with a JSON schema against without: 1 answer; 32 at once",
        "有 JSON 模式时每秒 token 数，与没有时相比：1 个回答；同时 32 个",
        lambda figures: "; ".join(
            f"{figures['sampling'][name]['speed with / without']:.0%}"
            for name in ("1 at once", "32 at once")
        ),
        "",
    ),
    Row(
        "gguf",
        "GGUF in llama.cpp, greedy answers equal to the engine's: F32; Q8_0; Q4_K_M",
        "llama.cpp 中的 GGUF，与引擎相同的贪心回答：F32；Q8_0；Q4_K_M",
        lambda figures: "; ".join(
            f"{figures['types'][kind][SAME_ANSWERS]} / {figures['questions']}"
            for kind in ("F32", "Q8_0", "Q4_K_M")
        ),
        "",
    ),
    Row(
        "gguf",
        "GGUF in llama.cpp, mean difference of a log-probability: F32; Q8_0; Q4_K_M",
        "llama.cpp 中的 GGUF，对数概率的平均差：F32；Q8_0；Q4_K_M",
        lambda figures: "; ".join(
            f"{figures['types'][kind]['mean difference']:.4f}" for kind in ("F32", "Q8_0", "Q4_K_M")
        ),
        "",
    ),
    Row(
        "vllm_exports",
        "answers in vLLM equal to ours, asked as a chat: merged; adapter; no --chat-template",
        "vLLM 中与引擎相同的回答，按对话提问：合并模型；adapter；不用 --chat-template",
        lambda figures: "; ".join(
            f"{figures['exports'][name]['as a chat']} / {figures['questions']}"
            for name in ("merged", "adapter", "adapter without --chat-template")
        ),
        "",
    ),
    Row(
        "proving",
        "`export --prove`, largest difference of an answer's log-probability: llama.cpp F32; Q8_0; "
        "vLLM merged; adapter",
        "`export --prove`，回答对数概率的最大差：llama.cpp F32；Q8_0；vLLM 合并模型；adapter",
        lambda figures: "; ".join(
            row[3]
            for name in ("llama-server, F32", "llama-server, Q8_0", "vLLM, merged", "vLLM, adapter")
            for row in figures["proofs"][name]["table"]
            if row[:2] == ["Log-probabilities of answers", "token ids"]
        ),
        "",
    ),
]


def table(page: str, results: Path = RESULTS) -> str:
    """The table for a page of `HEADS`, from the results that are there."""
    lines = []
    for row in ROWS:
        path = results / f"{row.results}.json"
        if not path.is_file():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        measured = row.measured(content["figures"])
        if measured is None:
            continue
        label = row.english if page == ENGLISH else row.chinese
        lines.append(f"| {label} | {measured} | {row.wanted} | {content['date']} |\n")
    return HEADS[page] + "".join(lines)


def with_table(text: str, new: str) -> str:
    """`text` with what stands between the markers replaced."""
    before, rest = text.split(BEGIN, 1)
    return before + BEGIN + new + END + rest.split(END, 1)[1]


def main() -> None:
    for page in HEADS:
        path = ROOT / page
        path.write_text(with_table(path.read_text(encoding="utf-8"), table(page)), encoding="utf-8")
    known = {row.results for row in ROWS} | {
        "training_quick",
        "sampling_quick",
    }  # checks, no figures
    unknown = sorted(path.stem for path in RESULTS.glob("*.json") if path.stem not in known)
    if unknown:
        print("No row in benchmarks/table.py for: " + ", ".join(unknown), file=sys.stderr)


if __name__ == "__main__":
    main()
