"""Kernels are tested in Triton's interpreter, and the variable is read when their modules are first imported.

To run the tests marked ``gpu`` on a GPU, set ``TRITON_INTERPRET=0``.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # matrices in tests are small: threads would wait for one another
