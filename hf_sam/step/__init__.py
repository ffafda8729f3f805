"""One optimizer step: its micro-batches, what both passes begin from, what is counted and logged.

Each file keeps one promise of the step (the same draws, the same buffers, counters that count
once), and the trainer calls them in order. None of them may depend on the engine.
"""
