"""Entry point of `accelerate launch -m hf_sam.finetuning`: `hf-sam finetune` on several devices."""

from .finetune import main

if __name__ == "__main__":
    main()
