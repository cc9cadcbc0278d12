"""Set before anything is imported: no progress bars, and one thread a process."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
