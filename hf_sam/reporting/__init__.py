"""Writes results for people and for later runs: model cards, tables, intervals, JSON files.

Whatever a user typed must pass through `markdown.py` and `commands.py`, which remove markup, tokens
and local paths; fields may be added to the JSON, but what exists must stay readable.
"""
