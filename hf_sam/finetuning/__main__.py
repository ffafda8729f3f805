"""`accelerate launch -m hf_sam.finetuning`, as `hf-sam finetune` runs it on one device."""

from .finetune import main

if __name__ == "__main__":
    main()
