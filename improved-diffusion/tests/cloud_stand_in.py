"""A folder in the place of cloud storage: blobfile's functions with gs://, az:// and https:// paths turned to it.

Everything above blobfile runs as it does with a real bucket. As `sitecustomize` on the PYTHONPATH of a script, with
CLOUD_FOLDER in its environment, see `install_for_scripts`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

FUNCTIONS = ("copy", "exists", "isdir", "listdir", "remove", "scandir", "stat")


def install(folder: Path, set_attribute: Callable[[object, str, object], None] = setattr) -> None:
    """Turn gs://bucket/x into <folder>/bucket/x; each call is noted in <folder>/calls.txt."""
    import blobfile
    from improved_diffusion import blob

    def local(value: object) -> object:
        if isinstance(value, str) and value.startswith(("gs://", "az://", "https://")):
            return str(folder / value.split("://")[1])
        return value

    def wrap(name: str) -> Callable[..., object]:
        original = getattr(blobfile, name)

        def call(*args: object, **kwargs: object) -> object:
            with open(folder / "calls.txt", "a", encoding="utf-8") as file:
                file.write(f"{name} {' '.join(map(str, args))}\n")
            moved = [local(value) for value in args]
            if name == "copy":  # a bucket needs no folders
                os.makedirs(os.path.dirname(str(moved[1])), exist_ok=True)
            return original(*moved, **kwargs)

        return call

    functions = SimpleNamespace(**{name: wrap(name) for name in FUNCTIONS})
    set_attribute(blobfile, "create_context", lambda **_: functions)
    blob._context.cache_clear()


def install_for_scripts(folder: Path, site: Path) -> dict[str, str]:
    """Return the environment variables under which a script's gs:// paths lie in `folder`."""
    site.mkdir(parents=True, exist_ok=True)
    (site / "sitecustomize.py").write_text(
        f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from cloud_stand_in import install\ninstall(Path({str(folder)!r}))\n"
    )
    paths = [str(site), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
