"""A folder in the place of cloud storage: blobfile's functions with gs://, az:// and https:// paths turned to it.

Everything above blobfile runs as it does with a real bucket.
"""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

FUNCTIONS = ("BlobFile", "copy", "exists", "isdir", "listdir", "makedirs", "stat", "walk")


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
            if name == "walk":
                prefix = str(args[0]).rstrip("/")
                return ((root.replace(str(moved[0]).rstrip("/"), prefix), *rest) for root, *rest in original(*moved))
            return original(*moved, **kwargs)

        return call

    functions = SimpleNamespace(**{name: wrap(name) for name in FUNCTIONS})
    set_attribute(blobfile, "create_context", lambda **_: functions)
    blob._blobfile.cache_clear()
