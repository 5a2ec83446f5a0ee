"""What holds for all tests, and for the engines that they start."""

import os

# Before torch is imported. By default a thread that waits for work keeps its core busy, and two
# processes with two threads each on two cores spend most of their time waiting for each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Nothing about a result may depend on how busy the machine is: without a number, the engine chooses
# its threads by the load.
os.environ.setdefault("OMP_NUM_THREADS", "1")
