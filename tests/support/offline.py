"""No test reaches the network, and none leaves anything in the user's caches: import it first."""

import atexit
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
if "PYTEST_XDIST_WORKER" in os.environ:  # the other worker has the other core
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_sam-tests-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
