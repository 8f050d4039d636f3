"""The paths that stages and tools read and write, relative to the project's folder."""

from pathlib import Path

PARAMETERS = Path("params.yaml")
GRAPH = Path("dvc.yaml")
LOCK = Path("dvc.lock")

# Written by download.
RAW = Path("data/raw")
DATASET = RAW / "dataset.json"

# Written by preprocess.
PROCESSED = Path("data/processed")
TRAIN = PROCESSED / "train.npz"
VALIDATION = PROCESSED / "validation.npz"
TEST = PROCESSED / "test.npz"

# Written by train.
MODEL = Path("data/model/model.keras")
HISTORY = Path("data/model/history.csv")
TRACE = Path("data/model/trace.csv")
CHECKPOINT = Path("data/checkpoint/checkpoint.npz")  # deleted at the end of the training

# Written by evaluate.
METRICS = Path("data/evaluation/metrics.json")
PER_CLASS = Path("data/evaluation/per_class.csv")
PREDICTIONS = Path("data/evaluation/predictions.csv")

# Written by plot.
PLOTS = Path("data/plots")

# Written by tools.
REPORTS = Path("reports")
