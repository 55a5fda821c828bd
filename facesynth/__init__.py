"""Balance facial-expression datasets with synthetic faces that are worth training on.

The verbs of the command line are functions here: `balance`, `augment`, `train` and `evaluate`. Each returns a typed result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["augment", "balance", "evaluate", "train"]

if TYPE_CHECKING:
    from facesynth.augmenting import augment
    from facesynth.balancing import balance
    from facesynth.evaluating import evaluate
    from facesynth.training import train


def __getattr__(name: str) -> Any:
    # Late, so that `facesynth --help` does not wait for torch.
    from importlib import import_module

    homes = {"augment": "augmenting", "balance": "balancing", "evaluate": "evaluating", "train": "training"}
    if name not in homes:
        raise AttributeError(f"module 'facesynth' has no attribute '{name}'")
    return getattr(import_module(f"facesynth.{homes[name]}"), name)
