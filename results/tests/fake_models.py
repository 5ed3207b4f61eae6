"""A stand-in for the models' scripts, for the tests of the studies."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from comparison import models
from comparison.files import write_json

TABLE = tuple(models.MODELS.values())


class FakeModels:
    """Stands in for the models' scripts: writes what they would write unless that is done, and keeps what it did."""

    def __init__(self, script, data):
        self.script, self.data, self.done, self.interrupt_at = script, data, [], None

    def __call__(self, command, console):
        folder = console.parent
        folder.mkdir(parents=True, exist_ok=True)
        value = dict(pairwise(command))
        if command[0] == "results/evaluate.py":
            self.evaluate(command, value)
            return
        if self.interrupt_at == len(self.done):
            self.interrupt_at = None
            raise KeyboardInterrupt
        model = next(model for model in TABLE if command[0] in (model.train, model.sample, model.distill))
        bench = "--benchmark" in command
        if command[0] != model.sample:
            did = self.train(model, folder, value, "--fresh" in command)
        else:
            did = self.sample(model, folder, value, folder / ("timing.json" if bench else "sampling.json"))
        if did:
            self.done.append(command)

    def commands(self, script):
        """Return the commands of a script that did something, as dictionaries."""
        return [dict(pairwise(command)) for command in self.done if command[0] == script]

    def evaluate(self, command, value):
        result = self.script(Path(value["--anchors"]).parent, "evaluate.py", *command[1:], "--threads", "1")
        assert result.returncode == 0, result.stderr

    def train(self, model, folder, value, fresh=False):
        from comparison.data.images import load_images

        there = folder / "config.json"
        seconds = float(value.get("--stop_after") or value.get("--max_seconds", 3))
        if there.is_file() and not fresh and json.loads(there.read_text())["finished"]["wall_seconds"] >= seconds:
            return False
        teacher = Path(value["--model_path"]).parent / "config.json" if "--model_path" in value else None
        source, size = value["--data"], int(value.get("--image_size", 32))
        images = int(value.get("--max_images", 900))
        done = {"reason": f"max_seconds {seconds:g}", "steps": 9, "images_seen": images, "wall_seconds": seconds}
        kept = ("seed", "num_timesteps", "batch_size", "ngf")
        options = {name: int(value[f"--{name}"]) for name in kept if f"--{name}" in value} | {"data": source}
        if teacher:
            cost = json.loads(teacher.read_text())["finished"]
            options["few_step"] = {"levels": {}}
            options["teacher"] = {"step": cost["steps"], **{k: cost[k] for k in ("images_seen", "wall_seconds")}}
        config = {"model": model.name, "options": options, "data": load_images(source, size).describe()}
        config |= {"finished": {**done, "peak_memory_bytes": 10**9}, "device": "a CPU", "precision": "bfloat16"}
        write_json(there, {**config, "versions": {"torch": "2"}, "git_commit": "abc", "parameters": {"g": 1234}})
        slow = 2.0 if value.get("--precision") == "float32" else 1.0
        adversarial = model.name == models.DDGAN and value.get("--denoiser_fraction") != "1"
        judged = [f"accuracy_{side}_t{t}" for t in (0, 1) for side in ("real", "fake")] if adversarial else []
        header = ",".join(["step,images_seen,wall_seconds", *(["loss_g", *judged] if judged else [])])
        rows = [",".join([f"{i},{16 * i},{slow * i}", *(["1", *4 * ["0.75"]] if judged else [])]) for i in (1, 2, 3)]
        (folder / "progress.csv").write_text("\n".join([header, *rows]) + "\n")
        (folder / model.checkpoints.replace("*", "9")).write_text(f"{seconds} {fresh}")
        return True

    def sample(self, model, folder, value, found):
        checkpoint = Path(value["--checkpoint"])
        key = {"trained": checkpoint.read_text(), "command": sorted(value.items())}
        if found.is_file() and json.loads(found.read_text())["key"] == json.loads(json.dumps(key)):
            return False
        if found.name == "timing.json":
            batch = {"batch_size": 1, "seconds": 0.1, "images_per_second": 10.0, "peak_memory_bytes": 5 * 10**8}
            cost = {"nfe": 2.0, "gflop_per_evaluation": 0.1, "gflop_per_image": 0.2, "parameters": 1000, "key": key}
            best = {"best": {"batch_size": 1, "images_per_second": 10.0}, "batches": [batch]}
            write_json(found, {"sampler": "fake", "protocol": "made up", **cost, **best})
            return True
        count = int(value["--num_samples"])
        with np.load(self.data) as archive:  # the first images are in every subset, evenly spread ones only once
            images = archive["arr_0"][::10][:count]
        config = json.loads((checkpoint.parent / "config.json").read_text())
        times = config["data"]["image_size"] // images.shape[1]
        np.savez(folder / "samples.npz", arr_0=images.repeat(times, 1).repeat(times, 2))
        steps = value.get("--num_sampling_steps") or value.get("--timestep_respacing", "ddim4").removeprefix("ddim")
        nfe = 1.0 if model.name == models.GAN else float(config["options"].get("num_timesteps") or steps)
        facts = {"file": "samples.npz", "nfe": nfe, "seconds_per_image": 0.001 * nfe, "batch_size": 100, "key": key}
        write_json(found, {**facts, "sampler": f"{nfe:g} steps", "images": count})
        return True
