"""Run scripts one after the other in this process, where imports of large libraries fail.

Standard input: JSON, a list of command lines, each a list of words with the script's path first. Standard output: JSON,
for each its exit status, standard output and standard error.
"""

import json
import sys
from pathlib import Path

LARGE = ("torch", "torchvision", "scipy", "matplotlib", "mpi4py", "blobfile", "pytorch_fid", "diffusers")

if __name__ == "__main__":
    sys.modules |= dict.fromkeys(LARGE)
    from conftest import run_script

    json.dump([run_script(words, Path.cwd()) for words in json.load(sys.stdin)], sys.stdout)
