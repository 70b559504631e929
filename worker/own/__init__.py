"""Tasks that train by themselves: ``def train(trial)``, whatever the framework. The same interface as the engine's, one trial at a time."""

from worker.own.loop import OwnLoop
from worker.own.saved import load_state
from worker.own.trial import OwnTrial, TrialEnded

__all__ = ["OwnLoop", "OwnTrial", "TrialEnded", "load_state"]
