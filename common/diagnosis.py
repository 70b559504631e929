"""The words for what a trial's curves say, in the order in which they are tried, and what each means for the search."""

from __future__ import annotations

from enum import StrEnum


class DiagnosisWord(StrEnum):
    """One word a trial: the first that applies. An earlier one makes the later ones meaningless or would cause them."""

    EXPLODED = "exploded"
    NOT_LEARNING = "not learning"
    PLATEAUED_HIGH = "plateaued high"
    DEAD_UNITS = "dead units"
    LARGE_UPDATES = "large updates"
    NOISY = "noisy"
    OVERFITTING = "overfitting"
    SMALL_UPDATES = "small updates"
    STILL_IMPROVING = "still improving"
    UNDERFITTING = "underfitting"
    GOOD = "good"


SUGGESTIONS: dict[DiagnosisWord, str] = {  # for the search, where the word is the commonest of a stage
    DiagnosisWord.EXPLODED: "lower the upper end of learning_rate",
    DiagnosisWord.NOT_LEARNING: "move learning_rate; if no trial learns, look at the data and labels with worker check",
    DiagnosisWord.PLATEAUED_HIGH: "lower learning_rate, or let it fall with a schedule",
    DiagnosisWord.DEAD_UNITS: "lower learning_rate, or try another activation, init or batch_norm",
    DiagnosisWord.LARGE_UPDATES: "lower learning_rate, or begin with warmup_epochs",
    DiagnosisWord.NOISY: "use larger batches, or a lower learning_rate",
    DiagnosisWord.OVERFITTING: "regularise more: weight_decay, dropout, augmentation, or a smaller model",
    DiagnosisWord.SMALL_UPDATES: "raise learning_rate",
    DiagnosisWord.STILL_IMPROVING: "train longer, in this stage or the next",
    DiagnosisWord.UNDERFITTING: "give the model more capacity, or regularise less",
    DiagnosisWord.GOOD: "go on to the next stage",
}
