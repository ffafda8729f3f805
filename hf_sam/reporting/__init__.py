"""What is written for people: model cards, tables, JSON that is read back, intervals.

Whatever a user typed passes through `markdown.py` and `commands.py`, which keep markup, tokens and
paths out; keep it so.
"""
