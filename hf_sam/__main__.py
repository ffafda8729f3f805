"""Entry point of `python -m hf_sam`, the same as the command `hf-sam`."""

from .cli import main

if __name__ == "__main__":
    main()
