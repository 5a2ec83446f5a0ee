"""Settings of this project. A name that you remove has its default.

All settings stand here, with their defaults; docs/reference/settings.md of Tinkersmith's source has
their limits. The values suit the bundled model and data. A comment says where real models need
another one.

This file is Python. Relative names of files start from its folder.
"""

# --- What to train on -------------------------------------------------------------------------

# JSON arrays or JSON Lines (also .gz) with "instruction", "input" (optional) and "output".
# A file is looked for as named, then in data/. To take a file more or less often than once per
# epoch, give weights: {"data/a.jsonl": 2.0, "data/b.jsonl": 0.5}.
DATA_FILES = ["data/train_set.json"]

# What your records call the fields, such as {"instruction": "question", "output": "answer"}. Common
# names and chat messages are found without it.
COLUMNS = {}

# The encoding of the files, such as "gb18030". "auto" reads UTF-8 and UTF-16, and what is certain.
ENCODING = "auto"

# Kept out of training, and measured while it runs: files, or a share of the training data (0.05 is
# 5 %). Set one of the two, or neither.
VALIDATION_FILES = []
VALIDATION_RATIO = 0.0

# How a sample becomes text: "instruction", "alpaca", "chat" (the model's own chat template), or
# your own format such as "Question: {instruction}\n{input}\nAnswer: ".
# "auto" uses "chat" for instruct models and "instruction" for all others.
PROMPT_TEMPLATE = "auto"

# Which turns of a conversation are trained on: "all" answers, only the "last" one, or "all_text".
TRAIN_ON = "all"

# Thoughts in the answers: "keep" trains on them, "strip" removes them, "off" refuses them.
# "auto" keeps those that the data has.
THINKING = "auto"

# --- The model --------------------------------------------------------------------------------

# The bundled model needs no download. With a TINKER_API_KEY, name one of the cloud's models, such
# as "Qwen/Qwen3.8-27B": `tinkersmith models` lists them. A folder in Hugging Face format works too.
BASE_MODEL = "tinkersmith/tiny-math"

# A folder with the model's tokenizer.json, for where no hub can be reached. "" takes the model's
# own folder, or else asks the hub (HF_ENDPOINT names a mirror).
TOKENIZER = ""

# The trained model's name begins with this; date and time follow.
MODEL_NAME_PREFIX = "my-model"

# Where to train: "auto" is Tinker's cloud if TINKER_API_KEY is set, else this machine; "tinker" and
# "local" choose one of them.
BACKEND = "auto"

# --- Training ---------------------------------------------------------------------------------

# The adapter's rank: 8 to 64. A higher one learns more and needs more memory.
LORA_RANK = 16

# Which layers get a LoRA: attention, MLP (with experts), and the output layer. "auto" trains the
# output layer unless it is the input embedding: few programs load an adapter on such a layer.
TRAIN_ATTN = True
TRAIN_MLP = True
TRAIN_UNEMBED = "auto"

# Start from weights that are trained already: a run's name or folder, a state's tinker:// path,
# or, on this machine, the folder of an exported adapter. "" starts from a new LoRA.
INITIAL_CHECKPOINT = ""

# Take over the optimizer's state of INITIAL_CHECKPOINT, too.
INITIAL_OPTIMIZER = False

# The highest learning rate. 5e-3 suits only the tiny bundled model. Use 1e-4 to 5e-4 for models of
# 1 billion parameters and more; the larger the model, the lower.
LEARNING_RATE = 5e-3

# "linear" and "cosine" fall to nearly 0; "constant" stays.
LR_SCHEDULE = "linear"

# The share of the run in which the learning rate rises to its highest value.
WARMUP_RATIO = 0.03

# How often training goes through the data: 1 to 3. More makes the model memorise the samples.
NUM_EPOCHS = 2

# Samples per step: 8 to 128. A larger batch is steadier and needs fewer steps per epoch.
BATCH_SIZE = 8

# Gradients with a larger norm are scaled down to this one; 0 turns it off.
GRAD_CLIP_NORM = 1.0

# "adamw", or "dimuon", whose steps have the same size in every direction.
OPTIMIZER = "adamw"

# AdamW's weight decay, and how long it averages the gradients and their squares.
WEIGHT_DECAY = 0.0
ADAM_BETAS = [0.9, 0.95]

# Decides the order of the samples and the adapter's first weights.
SEED = 42

# --- What a run may use -----------------------------------------------------------------------

# USD that a run may cost and minutes that it may take; 0 sets no limit. The plan is cut to fit, and
# the run stops before, saved. `tinkersmith train --dry-run` shows both without training.
BUDGET_USD = 0.0
BUDGET_MINUTES = 0.0

# What a million tokens cost, such as {"prefill": 0.2, "sample": 0.6, "train": 0.44}. {} takes the
# dated table of Tinker's prices: `tinkersmith models`.
TOKEN_PRICE = {}

# --- Long samples -----------------------------------------------------------------------------

# The longest sample (prompt and answer together), in tokens. Training prints what yours need.
MAX_SEQUENCE_LENGTH = 16384

# True cuts the end off answers that are too long; False skips such samples.
TRUNCATE_LONG_SEQUENCES = True

# Print the first ten samples that were cut or skipped.
SHOW_LENGTH_WARNINGS = True

# --- During and after training ----------------------------------------------------------------

# Files whose questions the model answers during training, and how many of them; 0 is all. The
# answers are scored as evaluate_model.py scores them. Keep them out of DATA_FILES.
EVAL_FILES = []
EVAL_LIMIT = 100

# Measure the validation data and EVAL_FILES every so many steps; 0 is at the end of each epoch.
EVAL_EVERY = 0

# What the best checkpoint is best by: "validation_loss", or a score of METRICS on EVAL_FILES, such
# as "final_answer". "auto" takes the validation loss if there is validation data.
BEST_BY = "auto"

# Stop after so many measurements in a row without a better BEST_BY; 0 never does.
PATIENCE = 0

# Save a checkpoint every so many steps; 0 is at the end of each epoch only.
SAVE_EVERY = 0

# Save a checkpoint, too, when the last one is so many minutes old; 0 turns this off.
SAVE_EVERY_MINUTES = 10.0

# States of a run that stay, beside the best one, the last of each epoch, and the last one at which
# the loss had surely not risen; 0 keeps all.
KEEP_LAST = 3

# The server deletes a run's checkpoints after so many days; 0 never.
CHECKPOINT_TTL_DAYS = 0

# Seconds to wait for a server by URL or the cloud that does not answer; 0 gives up at once.
SERVER_PATIENCE = 600

# Stop a run whose loss has risen for long, and name the last good checkpoint.
STOP_ON_DIVERGENCE = True

# Where curves go beside the run's folder: "tensorboard", "wandb", "swanlab", "trackio", "mlflow".
# Each needs its library: pip install 'tinkersmith[tensorboard]'.
TRACKERS = []

# What to export after training: "ask", "no", "adapter" (a PEFT folder) or "merged" (a full model).
EXPORT_AFTER_TRAINING = "ask"

# Each run gets a folder of its own in this one.
OUTPUT_DIR = "runs"

# --- Answers of the trained model -------------------------------------------------------------

# The longest answer, in tokens.
SAMPLING_MAX_TOKENS = 1024

# 0 always takes the most likely token; 0.7 varies the answers.
SAMPLING_TEMPERATURE = 0.0

# How many answers are sampled for one prompt.
SAMPLING_NUM_SAMPLES = 1

# --- Scores of an evaluation ------------------------------------------------------------------

# "auto" is exact match, final answer and contains answer, and "json" or "labels" where the expected
# outputs are such. More: "token_f1", "rouge_l", "bleu", "perplexity", "judge", or a function of
# yours: ["auto", "my_metrics.py:politeness"].
METRICS = ["auto"]

# A judge is any server with OpenAI's chat completions, such as "http://localhost:8000/v1". Its key
# does not belong here: set JUDGE_API_KEY in the environment.
JUDGE_URL = ""
JUDGE_MODEL = ""

# "graded" is 1 to 10; "right_wrong"; "pairwise" compares the trained with the base model.
JUDGE_MODE = "graded"

# What counts for the judge, in your own words.
JUDGE_RUBRIC = ""

# What a million tokens cost, such as {"input": 0.5, "output": 1.5}. {} says tokens alone.
JUDGE_PRICE = {}
