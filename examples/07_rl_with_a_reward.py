"""Reinforcement learning with a reward of your own, through the official tinker SDK.

The model answers each question several times. An answer that earned more than the mean of its
group becomes likelier, one that earned less becomes rarer. The same program runs in Tinker's cloud:
set TINKER_API_KEY and name one of its models.

python examples/07_rl_with_a_reward.py
"""

import statistics

import tinker

from tinkersmith.service.connection import open_service
from tinkersmith.settings.reading import settings_from

BASE_MODEL = "tinkersmith/tiny-math"
QUESTIONS = [
    f"Instruction: Solve this problem step by step.\nInput: {name} has {a} coins and finds {b}."
    f" How many coins does {name} have?\nResponse:\n"
    for name, a, b in [("Leo", 12, 7), ("Mia", 30, 9), ("Tom", 8, 15), ("Ana", 21, 6)]
]
ROUNDS, GROUP, MAX_TOKENS = 5, 8, 16


def reward(answer: str) -> float:
    """1 for an answer that shows a calculation. Write your own: a test, a judge, ..."""
    return float("=" in answer)


def datum(prompt: list[int], answer: tinker.SampledSequence, advantage: float) -> tinker.Datum:
    """One answer for training; position i predicts token i + 1, and the prompt earns nothing."""
    tokens = prompt + answer.tokens
    before = len(prompt) - 1  # predictions within the prompt
    assert answer.logprobs is not None
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=tokens[1:], dtype="int64"),
            "logprobs": tinker.TensorData(data=[0.0] * before + answer.logprobs, dtype="float32"),
            "advantages": tinker.TensorData(
                data=[0.0] * before + [advantage] * len(answer.tokens), dtype="float32"
            ),
        },
    )


def main() -> None:
    settings = settings_from({"BASE_MODEL": BASE_MODEL})
    with open_service(settings) as service:
        tokenizer = service.tokenizer()
        client = service.client.create_lora_training_client(base_model=BASE_MODEL, rank=16, seed=0)
        client = client.result()
        prompts = [tokenizer.encode(text).tolist() for text in QUESTIONS]
        for round_number in range(1, ROUNDS + 1):
            # The sampling client has the weights of this moment, so the answers are its own.
            sampler = client.save_weights_and_get_sampling_client().result()
            params = tinker.SamplingParams(
                max_tokens=MAX_TOKENS, temperature=1.0, seed=round_number
            )
            pending = [
                sampler.sample(tinker.ModelInput.from_ints(prompt), GROUP, params)
                for prompt in prompts
            ]
            batch, earned = [], []
            for prompt, future in zip(prompts, pending, strict=True):
                answers = future.result().sequences
                rewards = [reward(tokenizer.decode(answer.tokens)) for answer in answers]
                mean = statistics.mean(rewards)
                batch += [
                    datum(prompt, answer, value - mean)
                    for answer, value in zip(answers, rewards, strict=True)
                ]
                earned += rewards
            client.forward_backward(batch, "importance_sampling")
            client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
            print(f"round {round_number}: mean reward {statistics.mean(earned):.2f}", flush=True)
        print("Saved:", client.save_weights_for_sampler("reward").result().path)


if __name__ == "__main__":
    main()
