"""What the engine that trains a model allows SAM to do, and what it needs done: one file an engine.

`engine.py` has the questions that SAM asks of every engine; a new engine answers them in a file of
its own and is added to `ENGINES` here. `rules.py` refuses the engines that nobody has answered for.
"""
