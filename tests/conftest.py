"""No test reaches the network, and none leaves anything in the user's caches."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_sam-tests-")
