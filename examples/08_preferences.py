"""Learn from preferences with a loss of your own (DPO), through the official tinker SDK.

`forward_backward_custom` gives your function the logprobs of each sequence as torch tensors. Write
any loss of them: the SDK takes its gradient, and the server applies it.

python examples/08_preferences.py
"""

import tinker
import torch

from tinkersmith.service.connection import open_service
from tinkersmith.settings.reading import settings_from

BASE_MODEL = "tinkersmith/tiny-math"
# A prompt, the better answer, the worse answer.
PAIRS = [
    (f"Instruction: What is {n} + {n}?\nResponse:\n", f"Answer: {2 * n}", f"I think it is {2 * n}.")
    for n in range(2, 10)
]
ROUNDS = 6
BETA = 0.1  # how far the model may move away from where it began


def datum(prompt: list[int], answer: list[int]) -> tinker.Datum:
    """A prompt with its answer; the weights say which predictions belong to the answer."""
    tokens = prompt + answer
    weights = [0.0] * (len(prompt) - 1) + [1.0] * len(answer)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=tokens[1:], dtype="int64"),
            "weights": tinker.TensorData(data=weights, dtype="float32"),
        },
    )


def answer_logprob(item: tinker.Datum, logprobs: torch.Tensor) -> torch.Tensor:
    return (logprobs * item.loss_fn_inputs["weights"].to_torch()).sum()


def main() -> None:
    with open_service(settings_from({"BASE_MODEL": BASE_MODEL})) as service:
        tokenizer = service.tokenizer()
        client = service.client.create_lora_training_client(base_model=BASE_MODEL, rank=16, seed=0)
        client = client.result()
        data = []
        for prompt, better, worse in PAIRS:
            question = tokenizer.encode(prompt).tolist()
            data += [datum(question, tokenizer.encode(text).tolist()) for text in (better, worse)]

        # The untrained model is the reference: its logprobs are asked for once.
        outputs = client.forward(data, "cross_entropy").result().loss_fn_outputs
        reference = [
            answer_logprob(item, output["logprobs"].to_torch())
            for item, output in zip(data, outputs, strict=True)
        ]

        def preference_loss(
            batch: list[tinker.Datum], logprobs: list[torch.Tensor]
        ) -> tuple[torch.Tensor, dict[str, float]]:
            gains = torch.stack(
                [
                    answer_logprob(item, values) - before
                    for item, values, before in zip(batch, logprobs, reference, strict=True)
                ]
            )
            margins = gains[0::2] - gains[1::2]  # better against worse
            loss = -torch.nn.functional.logsigmoid(BETA * margins).mean()
            return loss, {"loss": loss.item(), "margin": margins.mean().item()}

        for round_number in range(1, ROUNDS + 1):
            step = client.forward_backward_custom(data, preference_loss).result()
            client.optim_step(tinker.AdamParams(learning_rate=3e-3)).result()
            loss, margin = step.metrics["loss"], step.metrics["margin"]
            print(f"round {round_number}: loss {loss:.3f}, margin {margin:.1f}", flush=True)
        print("Saved:", client.save_weights_for_sampler("preferred").result().path)


if __name__ == "__main__":
    main()
