"""Provides the parts of one optimizer step: inputs, random state, buffers, counters and the log.

Each file ensures one property of the step (the same random draws in both passes, the same buffers,
counters that count once) for `trainer.py` to use, and none may depend on the engine.
"""
