"""Fine-tunes image classifiers from the command line: the command `hf-sam finetune`.

New options go into `fields.py` and new data sets into `tasks.py`; `finetune.py` calls the other
files in order, and a finished run's files must stay readable.
"""
