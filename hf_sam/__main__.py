"""`python -m hf_sam`: the command `hf-sam`."""

from .cli import main

if __name__ == "__main__":
    main()
