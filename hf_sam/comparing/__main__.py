"""`python -m hf_sam.comparing`, as `hf-sam compare` runs it."""

from .compare import main

if __name__ == "__main__":
    main()
