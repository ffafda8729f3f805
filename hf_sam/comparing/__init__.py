"""Comparisons of SAM with the base optimizer over several seeds: `hf-sam compare`.

`plan.py` says which runs a comparison has and `compare.py` trains them; statistics, tables and
pictures read the JSON that comes of it, whose fields must stay readable.
"""
