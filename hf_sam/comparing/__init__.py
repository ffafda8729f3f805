"""Compares SAM with the base optimizer over several seeds: the command `hf-sam compare`.

`plan.py` lists the runs and `compare.py` trains them; statistics, tables and plots are made from
the resulting JSON, to which fields may be added, but old files must stay readable.
"""
