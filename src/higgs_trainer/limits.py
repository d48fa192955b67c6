"""The limits of what this package reads, each with its reason.

They bound the time and the memory that a damaged or hostile file can take. No limit here is near a value of real data.
Limits that real data may exceed are options of a command: those of recordings and corpora are in
`corpus/measurements.py`, and the length of a reference is `LONGEST_REFERENCE_SECONDS` unless the caller gives another.
"""

# Recipes

RECIPE_BYTES = 1_000_000
"""The largest shipped recipe has 1 kB. A recipe with a thousand sentences to speak has 100 kB."""
RECIPE_VALUES = 10_000
"""Values of a recipe, counted after aliases are replaced: a few lines of aliases can stand for billions of values."""
RECIPE_DEPTH = 16
"""Levels of a recipe. The deepest field, such as `accelerator_config`, has 4."""
RECIPE_PROBLEMS_SHOWN = 20
"""A recipe with more problems is another kind of file. A suggestion for each would take minutes."""

# Numbers

LONGEST_NUMBER = 40
"""Characters of a number, in YAML and in JSON. 20 digits hold every 64-bit integer, 17 every float64."""
LARGEST_COUNT = 2**31 - 1
"""Sizes and counts are 32-bit integers in torch, Arrow and transformers."""
LARGEST_RANK = 2**14
"""LoRA matrices of this rank are larger than the layers of any model, and much larger ones do not fit into memory."""
LARGEST_WEIGHT = 10_000.0
"""How often an example of a prepared folder may be drawn in an epoch. The draws of an epoch are kept in memory."""
MOST_PLANNED_DRAWS = 300_000_000
"""Examples that all epochs of a mixture draw, if their weights make the epochs differ. Each is planned before training,
in about two microseconds."""
LARGEST_EPOCHS = 1_000_000.0
"""The number of epochs. The lengths of all epochs of a mixture are planned before training."""
MOST_WORKERS = 1_024
"""Processes that load data. More are a mistake, and would exhaust the machine."""
LONGEST_SPEECH_SECONDS = 3_600.0
"""The length at which generated speech may be cut, and of a clip that is read again. A model that never ends would
otherwise run for days."""
LARGEST_BATCH = 65_536
"""Texts that are generated at once."""
SEEDS = range(2**32)
"""numpy, with which transformers seeds a run, accepts no other seeds."""
GENERATOR_SEEDS = range(2**63)
"""Seeds of torch's generators, with which speech is sampled."""
SMALLEST_REWARD, LARGEST_REWARD = 1e-37, 3e38
"""Magnitudes that float32 holds. A larger reward would become infinite and a smaller one zero."""

# Rows and the files that contain them

LINE_BYTES = 2**24
"""A row with 800 texts of `LONGEST_TEXT` characters. Without a limit, a file without a line end is read whole."""
FIELDS_IN_ROW = 100
"""A row has at most 13 fields, and a table from elsewhere a few dozen. More are another kind of file."""
MOST_CLIPS = 1_000
"""References or earlier turns of a row. A prompt with more is longer than the context of the model."""
DOCUMENT_BYTES = 2**29
"""A file that is one JSON document is read whole. 512 MB hold a million samples of train-higgs-audio."""
TABLE_OF_TAGS_BYTES = 1_000_000
"""The table of `prepare --tags`: thousands of control tags."""
LONGEST_TEXT = 20_000
"""Characters of a text: about 15 minutes of fast speech."""
LARGEST_SPEAKER = 99
"""The number in a `[SPEAKERn]` tag. The model was trained with a few speakers in a dialogue."""

# Recordings

SHORTEST_SECONDS = 0.1
"""Less than three codec frames, too short for a word."""
LONGEST_REFERENCE_SECONDS = 600.0
"""A reference has some seconds, and a recording to judge some minutes. A megabyte of FLAC can hold ten hours."""
MOST_SAMPLES = 2**27
"""Samples of all channels: 512 MB. Only recordings with hundreds of kHz reach it before the limit of their length."""
USUAL_RATE_HZ = 48_000
"""A recording may have as many samples as its longest length has in stereo at this rate, if that is more."""
MOST_CHANNELS = 2
"""Averaging the channels is right for stereo, but not for 5.1."""
SAMPLE_RATES_HZ = range(1_000, 768_001)
"""Any other sample rate means a damaged header."""

# Files that a model folder, a prepared dataset or a run contains

MOST_WEIGHTS = 100_000
"""Tensors of a model whose weights are not downloaded yet. The released model has fewer than a thousand."""
STORED_JSON_BYTES = 2**28
"""A configuration, a tokenizer or a list of checksums. The tokenizer of the released model has 17 MB."""

# The chat template of a model folder

TEMPLATE_BYTES = 1_000_000
"""The released template has 3 kB."""
PROMPT_CHARACTERS = 1_000_000
"""The output of a template. The longest prompt of a row has a few texts of `LONGEST_TEXT` characters."""
TEMPLATE_SECONDS = 1
"""Time of the CPU to render a template, which takes milliseconds."""
TEMPLATE_WAIT_SECONDS = 60
"""Time in which a template must be rendered, on a machine that is busy with other processes."""
TEMPLATE_MEMORY_BYTES = 2**29
"""Memory of the process that renders a template. An interpreter with jinja2 takes 30 MB."""
