"""Entry point of `python -m hf_sam.comparing`, the same as `hf-sam compare`."""

from .compare import main

if __name__ == "__main__":
    main()
