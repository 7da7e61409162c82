"""Training: a loop that yields records, the state it changes, and checkpoints of that state."""

from softtrunc.training.checkpoint import (
    AVERAGES_FILE,
    WEIGHTS_FILES,
    CheckpointError,
    CheckpointInfo,
    Weights,
    check_weights,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    read_checkpoint_info,
    remove_unfinished,
    save_checkpoint,
    step_of,
)
from softtrunc.training.ema import EMA
from softtrunc.training.loop import StepRecord, fit, micro_batches
from softtrunc.training.loss_module import LossModule, step_draw
from softtrunc.training.monitor import Monitor, NonFiniteLossError, Stopwatch
from softtrunc.training.power_average import LENGTHS
from softtrunc.training.snapshots import (
    MOST_SNAPSHOTS,
    AnyWeights,
    keep_averages,
    load_average,
    weights_name,
)
from softtrunc.training.state import TrainingConfig, TrainState

__all__ = [
    "AVERAGES_FILE",
    "EMA",
    "LENGTHS",
    "MOST_SNAPSHOTS",
    "WEIGHTS_FILES",
    "AnyWeights",
    "CheckpointError",
    "CheckpointInfo",
    "LossModule",
    "Monitor",
    "NonFiniteLossError",
    "StepRecord",
    "Stopwatch",
    "TrainState",
    "TrainingConfig",
    "Weights",
    "check_weights",
    "find_checkpoint",
    "fit",
    "keep_averages",
    "list_checkpoints",
    "load_average",
    "load_checkpoint",
    "load_weights",
    "micro_batches",
    "read_checkpoint_info",
    "remove_unfinished",
    "save_checkpoint",
    "step_draw",
    "step_of",
    "weights_name",
]
