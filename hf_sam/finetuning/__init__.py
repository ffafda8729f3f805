"""Fine-tuning of image classifiers from the command line: `hf-sam finetune`.

What can be asked for is in `fields.py` and `tasks.py`, and may grow there; `finetune.py` has the
order of things, and everything else serves it.
"""
