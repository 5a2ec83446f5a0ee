"""Train in Tinker's cloud: see which models it offers, then train one of them.

export TINKER_API_KEY=...           # your key; it costs what Tinker charges
python examples/10_cloud.py         # lists the models and trains nothing
python examples/10_cloud.py MODEL my-data.jsonl

With TINKER_BASE_URL as well, the program uses the server at that address, such as an engine on
another machine. See docs/guides/cloud.md.
"""

import os
import sys

import tinker

from tinkersmith import train


def main() -> None:
    if "TINKER_API_KEY" not in os.environ:
        sys.exit("Error: TINKER_API_KEY is not set. Set it to your key of Tinker's cloud.")
    if len(sys.argv) == 1:
        for model in tinker.ServiceClient().get_server_capabilities().supported_models:
            print(model.model_name)
        return
    if len(sys.argv) != 3:
        sys.exit("Error: name a model and a data file, or nothing for a list of the models.")
    with train(
        backend="tinker",  # never this machine, even if the key were missing
        base_model=sys.argv[1],
        data_files=[sys.argv[2]],
        num_epochs=1,
        learning_rate=2e-4,  # docs/guides/choosing-settings.md
        checkpoint_ttl_days=30,  # the cloud deletes the checkpoints after a month
        export_after_training="no",
    ) as trained:
        print("Export it with: tinkersmith export --model-path", trained.sampler_path)


if __name__ == "__main__":
    main()
