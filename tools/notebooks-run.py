"""Executes notebooks/*.ipynb, each in a kernel of its own, and keeps the results in build/notebooks/executed: the second
half of tools/notebooks, which sets the environment up. Exit 1 after the first error in a notebook, which is shown."""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 60  # of one cell
QUIET = ["--log-level=ERROR"]  # of a kernel


def main():
    os.environ.setdefault("MPLCONFIGDIR", str(ROOT / "build/notebooks/matplotlib"))  # its font cache, kept between runs
    code = 0
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        began = time.time()
        book = nbformat.read(path, as_version=4)
        try:
            NotebookClient(book, timeout=LIMIT_S, extra_arguments=QUIET, resources={"metadata": {"path": path.parent}}).execute()
            print(f"{path.name}: {time.time() - began:.1f} s", flush=True)
        except (CellExecutionError, CellTimeoutError) as why:
            print(f"tools/notebooks: {path}: {why}", file=sys.stderr)
            code = 1
        nbformat.write(book, ROOT / "build/notebooks/executed" / path.name)
    return code


if __name__ == "__main__":
    sys.exit(main())
