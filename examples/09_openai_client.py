"""Ask a model through OpenAI's API: the base model, or any checkpoint by its tinker:// path.

Start the engine first, and copy the two `export` lines that it shows into this terminal:

tinkersmith engine --port 8000 --dir runs/.engine
python examples/09_openai_client.py
python examples/09_openai_client.py tinker://.../sampler_weights/step-000010

Without TINKER_BASE_URL, the same program asks Tinker's cloud. It needs `pip install openai`.
"""

import os
import sys

from openai import OpenAI

CLOUD = "https://tinker.thinkingmachines.dev/services/tinker-prod"


def main() -> None:
    if "TINKER_API_KEY" not in os.environ:
        sys.exit("Error: TINKER_API_KEY is not set. Copy the two lines that the engine shows.")
    model = sys.argv[1] if len(sys.argv) > 1 else "tinkersmith/tiny-math"
    server = os.environ.get("TINKER_BASE_URL", CLOUD)
    client = OpenAI(base_url=f"{server}/oai/api/v1", api_key=os.environ["TINKER_API_KEY"])
    print("Models:", ", ".join(entry.id for entry in client.models.list()))
    prompt = "Instruction: Solve this problem step by step.\nInput: What is 3 + 4?\nResponse:\n"
    # A base model takes a plain prompt. One with a chat template also answers
    # client.chat.completions.create(model=model, messages=[...]).
    pieces = client.completions.create(
        model=model, prompt=prompt, max_tokens=24, temperature=0, stop="\n\n", stream=True
    )
    for piece in pieces:
        print(piece.choices[0].text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
