"""The diagnoses of a trial's curves, and what each suggests for the search."""

from __future__ import annotations

from enum import StrEnum


class DiagnosisWord(StrEnum):
    """The diagnosis of a trial, in the order in which they are tried: the first that applies.

    An earlier diagnosis would make the later ones meaningless, or would cause them.
    """

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


# What to change in the search if this is the most frequent diagnosis of a stage. Each text is short
# enough to share a line with its diagnosis.
SUGGESTIONS: dict[DiagnosisWord, str] = {
    DiagnosisWord.EXPLODED: "lower learning_rate",
    DiagnosisWord.NOT_LEARNING: "move learning_rate",
    DiagnosisWord.PLATEAUED_HIGH: "lower learning_rate",
    DiagnosisWord.DEAD_UNITS: "lower learning_rate",
    DiagnosisWord.LARGE_UPDATES: "lower learning_rate",
    DiagnosisWord.NOISY: "take larger batches",
    DiagnosisWord.OVERFITTING: "regularise more",
    DiagnosisWord.SMALL_UPDATES: "raise learning_rate",
    DiagnosisWord.STILL_IMPROVING: "train longer",
    DiagnosisWord.UNDERFITTING: "take a larger model",
    DiagnosisWord.GOOD: "go on to the next stage",
}
