"""Trains a recipe's network, resumes it bit by bit, and scores it, on one process or many."""

from fadeup.engine.evaluation import evaluate, predict
from fadeup.engine.training import Diverged, Setting, Trained, train

__all__ = ["Diverged", "Setting", "Trained", "evaluate", "predict", "train"]
