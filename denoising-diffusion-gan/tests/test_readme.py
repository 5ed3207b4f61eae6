"""The commands of this folder's README are ones that the scripts accept."""

import re
import shlex
from pathlib import Path

import loss_graph
import pytest
import test_ddgan as sampling
import toy_gaussians
import train_ddgan
import tune_ddgan
from comparison import cli, schedule
from helpers_ddgan import FOLDER

SCRIPTS = {
    "train_ddgan.py": train_ddgan,
    "test_ddgan.py": sampling,
    "loss_graph.py": loss_graph,
    "tune_ddgan.py": tune_ddgan,
    "toy_gaussians.py": toy_gaussians,
}
BLOCKS = re.findall(r"```bash\n(.*?)```", (FOLDER / "README.md").read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[:70])
def test_command_parses(command):
    command = re.sub(r"\$\(cat (\S+)\)", lambda found: (FOLDER.parent / found[1]).read_text(), command)
    words = shlex.split(command.split(" > ")[0])
    script = next(word for word in words if word.endswith(".py"))
    SCRIPTS[script.rpartition("/")[2]].parse_args(words[words.index(script) + 1 :])


def test_every_flag_that_the_readme_names_exists():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    sources = "".join((FOLDER / name).read_text() for name in SCRIPTS) + (FOLDER / "ddgan" / "options.py").read_text()
    sources += Path(cli.__file__).read_text() + Path(schedule.__file__).read_text()  # what all models share
    for name in set(re.findall(r"--(\w+)", text)) - {"help", "nproc_per_node"}:  # of torchrun
        assert f'"--{name}"' in sources or f'"{name}":' in sources, name
