import os
import sys

from serving_ops.bench_e2e.cli import main

status = main()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)  # at Python's own end Triton, which load generators import, prints hundreds of lines below the result
