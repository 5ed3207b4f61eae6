"""The structure of the shared package: layers, no cycles, and files that fit on a few screens."""

import ast
import graphlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "results" / "comparison"
# A module imports from its own layer or a lower one; a name without a dot is a module or a whole sub-package.
LAYERS = (
    ("cli", "progress", "formatting", "device", "rng", "files", "png", "contract", "weights"),
    ("data", "runs", "checkpoints", "curves"),
    ("training", "schedule", "ranks", "distributed", "models", "gpu"),
    ("sampling", "scores"),
    ("report",),
    ("jobs", "studies", "study_images"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
LONGEST = 350  # lines


def modules() -> dict[str, Path]:
    """Return dotted name within the package -> file."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def imports_of(path: Path, known: set[str]) -> set[str]:
    """Return the package's modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "comparison":
            base = (node.module or "").partition(".")[2]
            for alias in node.names:
                whole = f"{base}.{alias.name}" if base else alias.name
                found |= {name for name in (whole, base) if name in known}
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("comparison.")}
    return found


def test_every_module_has_a_layer_and_imports_none_above_it():
    files = modules()
    for name, path in files.items():
        mine = LEVEL[name.split(".")[0]]
        for imported in imports_of(path, set(files)):
            assert LEVEL[imported.split(".")[0]] <= mine, f"{name} imports {imported}, which lies above it"


def test_no_modules_import_each_other_in_a_circle():
    files = modules()
    graphlib.TopologicalSorter({name: imports_of(path, set(files)) for name, path in files.items()}).prepare()


def test_no_file_is_longer_than_a_few_screens():
    long = {}
    for folder in ("results", "gans", "improved-diffusion", "denoising-diffusion-gan"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > LONGEST and "tests" not in path.parts:
                long[str(path.relative_to(ROOT))] = lines
    assert not long
