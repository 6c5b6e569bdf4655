"""Settings for every test, made before torch is imported anywhere."""

import os

# The models of the tests are tiny: one thread is quickest, and a thread that waits for others by
# spinning makes a busy machine ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
