"""limited.py PROGRAM ARGUMENTS...: runs it and exits as it does, or with 99 if it held more than 1 GiB at any time."""
import resource
import subprocess
import sys

rc = subprocess.run(sys.argv[1:], check=False).returncode
peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
sys.exit(99 if peak_kib > 1 << 20 else rc if rc >= 0 else 128 - rc)
