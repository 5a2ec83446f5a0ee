"""Settings for `python train_with_config.py`. Every name is optional; the README explains them all.

These values suit the bundled model and data. Where real models want another one, it is said.
"""

# --- What to train on -------------------------------------------------------------------------

# JSON arrays or JSON Lines (also .gz) with "instruction", "input" (optional) and "output".
# A file is looked for as named, then in data/, then beside the script.
DATA_FILES = ["data/train_set.json"]

# Kept out of training and measured along the way: some files, or a share of the training data
# (0.05 is 5 %). Set one of the two, or neither.
VALIDATION_FILES = []
VALIDATION_RATIO = 0.0

# How a sample becomes text: "instruction", "alpaca", "chat" (the model's own chat template), or
# your own format such as "Question: {instruction}\n{input}\nAnswer: ".
# "auto" takes "chat" for instruct models and "instruction" for all others.
PROMPT_TEMPLATE = "auto"

# --- The model --------------------------------------------------------------------------------

# The bundled model needs no download. With a TINKER_API_KEY, name one of the cloud's models, such
# as "Qwen/Qwen3-30B-A3B-Instruct-2507". A folder in Hugging Face format works as well.
BASE_MODEL = "tinkersmith/tiny-math"

# The finished model's name begins with this; date and time follow.
MODEL_NAME_PREFIX = "my-model"

# Where it is trained: "auto" is Tinker's cloud if TINKER_API_KEY is set, else this machine;
# "tinker" and "local" name one of them.
BACKEND = "auto"

# --- Training ---------------------------------------------------------------------------------

# The adapter's width. 8 to 64; higher learns more and needs more memory.
LORA_RANK = 16

# The highest learning rate. 5e-3 suits only the tiny bundled model: take 1e-4 to 5e-4 for real
# ones (from 1 billion parameters up; the larger the model, the lower).
LEARNING_RATE = 5e-3

# "linear" and "cosine" end near 0, "constant" stays.
LR_SCHEDULE = "linear"

# The first part of the run, in which the learning rate rises to its highest value.
WARMUP_RATIO = 0.03

# How often the whole training data is seen: 1 to 3. More begins to learn by heart.
NUM_EPOCHS = 2

# Samples per step. 8 to 128; larger is steadier and takes fewer steps per epoch.
BATCH_SIZE = 8

# Longer gradients are shortened to this norm; 0 turns it off.
GRAD_CLIP_NORM = 1.0

# The order of the samples and the adapter's first weights follow from it.
SEED = 42

# --- Long samples -----------------------------------------------------------------------------

# The longest sample (prompt and answer together), in tokens. Training prints what yours need.
MAX_SEQUENCE_LENGTH = 16384

# True cuts the end off answers that are too long; False skips such samples.
TRUNCATE_LONG_SEQUENCES = True

# Print the first ten samples that were cut or skipped.
SHOW_LENGTH_WARNINGS = True

# --- Along the way and afterwards -------------------------------------------------------------

# Measure the validation data every so many steps; 0 is at the end of each epoch.
EVAL_EVERY = 0

# Save a checkpoint every so many steps; 0 is at the end of each epoch only.
SAVE_EVERY = 0

# What to write out after training: "ask", "no", "adapter" (a PEFT folder) or "merged" (a whole
# model folder).
EXPORT_AFTER_TRAINING = "ask"

# Each run gets a folder of its own in here.
OUTPUT_DIR = "runs"

# --- Answers of the trained model -------------------------------------------------------------

# The longest answer, in tokens.
SAMPLING_MAX_TOKENS = 1024

# 0 always takes the likeliest token; 0.7 varies the answers.
SAMPLING_TEMPERATURE = 0.0

# How many answers are drawn for one prompt.
SAMPLING_NUM_SAMPLES = 1
