"""The engine: task contract, recipe, loop, evaluation, checkpoints and the run folder."""
