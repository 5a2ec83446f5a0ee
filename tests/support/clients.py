"""Training and sampling clients of the SDK, driven on a running engine."""

import tinker

from tests.support.engine import MODEL


def train(client: tinker.TrainingClient, data: list[tinker.Datum], rate: float = 1e-2) -> float:
    """One step; returns the loss before it."""
    step = client.forward_backward(data, "cross_entropy")
    update = client.optim_step(tinker.AdamParams(learning_rate=rate))
    update.result()
    return step.result().metrics["loss:sum"]


def new_client(
    service: tinker.ServiceClient, rank: int = 4, seed: int = 1
) -> tinker.TrainingClient:
    return service.create_lora_training_client(base_model=MODEL, rank=rank, seed=seed).result()


PROMPT = tinker.ModelInput.from_ints([72, 101, 108, 108, 111])


GREEDY = tinker.SamplingParams(max_tokens=12, temperature=0.0, stop=[])


def greedy(client: tinker.SamplingClient) -> list[int]:
    [sequence] = client.sample(PROMPT, 1, GREEDY).result().sequences
    return list(sequence.tokens)
