"""Computes the perturbation epsilon from the gradient at w, in pure functions of tensors.

It imports only torch and numpy; each method of the SAM family is a file in `methods`, and every
formula must agree with its reference implementation in `tests/support/oracles.py`.
"""
