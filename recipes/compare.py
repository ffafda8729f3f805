"""Compare SAM with the base optimizer over seeds: `hf-sam compare`, started from a clone.

python recipes/compare.py --dataset oxford_pets --seeds 5 --sweep rho=0.02,0.05,0.1,0.2
"""

from hf_sam.comparing.compare import main

if __name__ == "__main__":
    main(program="compare.py")
