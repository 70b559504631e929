"""Tasks that train by themselves: a function ``train(trial)``, in any framework.

The function runs in a process of its own, one for each worker. The worker deals with it as with the
engine, one trial at a time.
"""

from worker.own.loop import OwnLoop
from worker.own.process import LoopHost, Source
from worker.own.saved import load_state
from worker.own.trial import OwnTrial, TrialEnded

__all__ = ["LoopHost", "OwnLoop", "OwnTrial", "Source", "TrialEnded", "load_state"]
