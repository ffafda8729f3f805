"""Fine-tune an image classifier with SAM: `hf-sam finetune`, started from a clone.

accelerate launch recipes/finetune.py --dataset oxford_pets --rho 0.05
"""

from hf_sam.finetuning.finetune import main

if __name__ == "__main__":
    main(program="finetune.py")
