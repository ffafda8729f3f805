"""Measurements as JSON, under the name that version 0.1 had for it."""

from ..codec import decode, encode

__all__ = ["decode", "encode"]
