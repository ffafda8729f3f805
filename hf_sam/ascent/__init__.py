"""From the gradient at w to the perturbation epsilon: formulas as pure functions of tensors.

It knows torch and no Trainer. A method of the SAM family is one file in `methods`; whoever changes
a formula has the oracle in `tests/support/oracles.py` to answer to.
"""
