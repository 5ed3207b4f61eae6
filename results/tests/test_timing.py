"""The benchmark, walks between latents, and what is known of a checkpoint's training."""

import json

import pytest
import torch
from comparison.checkpoints import trained_facts
from comparison.cli import UserError
from comparison.data.images import to_uint8
from comparison.files import read_json, write_json
from comparison.png import save_grid
from comparison.rng import SampleNoise
from comparison.runs import Run
from comparison.sampling import timing
from comparison.sampling.interpolation import COLUMNS, WALKS, WalkNoise, draw_interpolation, slerp
from comparison.sampling.timing import benchmark, count_flop, sweep_batch_sizes
from PIL import Image

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(timing, "BATCH_SIZES", (1, 4))
    monkeypatch.setattr(timing, "LIMIT", 1000)


FACTS = {"model": "none", "sampler": "two convolutions", "checkpoint": "c.pt", "network": "raw", "precision": "float32"}


class Toy:
    """A sampler of two evaluations, and the batch sizes it was asked for."""

    def __init__(self, fails_from=9):
        self.network = torch.nn.Conv2d(3, 3, 3, padding=1).train()
        self.fails_from, self.sizes = fails_from, []

    def evaluate(self, batch_size):
        return self.network(torch.zeros(batch_size, 3, 8, 8))

    def draw(self, indices):
        self.sizes.append(len(indices))
        if len(indices) >= self.fails_from:
            raise torch.OutOfMemoryError("no memory left")
        return self.network(self.evaluate(len(indices)))

    def measure(self, **options):
        options = {"min_seconds": 1e-3, **options}
        return benchmark(
            self.draw, [self.network], self.evaluate, image_size=8, device=CPU, facts=FACTS, **options
        )  # fmt: skip


class TestBenchmark:
    def test_evaluations_arithmetic_and_parameters_are_counted(self):
        found = Toy().measure()
        assert found["nfe"] == 2
        assert found["gflop_per_evaluation"] == pytest.approx(2 * 3 * 3 * 9 * 64 / 1e9)
        assert found["gflop_per_image"] == pytest.approx(2 * found["gflop_per_evaluation"], rel=1e-4)
        assert found["parameters"] == 3 * 3 * 9 + 3
        assert {**found, **FACTS} == found

    def test_every_batch_size_has_its_numbers_and_the_best_is_one_of_them(self):
        found = json.loads(json.dumps(Toy().measure(), allow_nan=False))
        sizes = [entry["batch_size"] for entry in found["batches"]]
        assert sizes in ([1, 4], [1, 4, 8])
        for entry in found["batches"]:
            assert entry["images_per_second"] == pytest.approx(entry["batch_size"] / entry["seconds"], rel=1e-4)
            assert entry["runs"] >= 1
            assert entry["peak_memory_bytes"] > 0
        best = max(found["batches"], key=lambda entry: entry["images_per_second"])
        assert found["best"] == {name: best[name] for name in ("batch_size", "images_per_second")}
        assert found["largest"]["batch_size"] == sizes[-1]
        assert found["skipped"] == []

    def test_networks_are_measured_in_eval_mode_without_gradients(self):
        toy = Toy()
        modes = []
        toy.network.register_forward_hook(lambda network, inputs, output: modes.append((network.training, output)))
        toy.measure()
        assert not any(training or output.requires_grad for training, output in modes)

    def test_slow_sampler_is_called_once_and_larger_batches_are_named_as_left_out(self):
        toy = Toy()
        found = toy.measure(min_seconds=1e-13)
        assert toy.sizes == [1]
        assert [(entry["runs"], entry["interquartile_range"]) for entry in found["batches"]] == [(1, None)]
        assert [entry["batch_size"] for entry in found["skipped"]] == [4]
        assert "more than 1e-10 s" in found["skipped"][0]["reason"]
        assert found["largest"] == {"batch_size": 1, "reason": found["skipped"][0]["reason"]}

    def test_end_of_memory_ends_the_doubling(self):
        assert Toy(fails_from=5).measure()["largest"] == {"batch_size": 4, "reason": "memory ran out"}
        skipped = Toy(fails_from=2).measure()["skipped"]
        assert skipped == [{"batch_size": 4, "reason": "memory ran out"}]
        with pytest.raises(UserError, match="a batch of 1 cannot be drawn"):
            Toy(fails_from=1).measure()

    def test_batch_that_would_not_fit_a_cpu_is_not_tried(self, monkeypatch):
        monkeypatch.setattr(timing, "available_memory_bytes", lambda: -1)
        toy = Toy()
        assert toy.measure()["skipped"] == [{"batch_size": 4, "reason": "memory would run out"}]
        assert set(toy.sizes) == {1}

    def test_doubling_ends_where_throughput_no_longer_rises(self):
        speeds = {256: 200.0, 512: 300.0, 1024: 303.0, 2048: 900.0}

        def attempt(size):
            return {"batch_size": size, "images_per_second": speeds[size]}, ""

        start = {"batch_size": 128, "images_per_second": 100.0}
        found, reason = sweep_batch_sizes(attempt, start)
        assert [entry["batch_size"] for entry in found] == [256, 512, 1024]
        assert reason == "throughput no longer rises"


class TestFlop:
    def test_products_and_attention_equal_their_formulas(self):
        x = torch.randn(2, 5, 7)
        assert count_flop(lambda: torch.nn.functional.linear(x, torch.randn(3, 7))) == 2 * 2 * 5 * 7 * 3
        q = torch.randn(1, 4, 16, 8)
        attention = torch.nn.functional.scaled_dot_product_attention
        assert count_flop(lambda: attention(q, q, q)) == 2 * 2 * 4 * 16 * 16 * 8


class TestWalks:
    def test_arc_keeps_the_length_and_its_ends_are_exact(self):
        a, b = torch.eye(4)[0] * 2, torch.eye(4)[1] * 2
        points = slerp(a, b, torch.linspace(0, 1, 5))
        assert torch.equal(points[0], a)
        assert torch.allclose(points[-1], b)
        assert torch.allclose(points.norm(dim=1), torch.tensor(2.0))
        assert torch.allclose(points[2], torch.tensor([2**0.5, 2**0.5, 0, 0]))

    def test_walk_leads_from_one_sample_to_the_next_with_the_other_noise_held(self):
        samples = SampleNoise(3, range(4), "cpu")
        walk = WalkNoise(3, 1, "cpu", "z")
        z = walk.normal((6,), "z")
        assert z.shape == (COLUMNS, 6)
        assert torch.equal(z[0], samples.normal((6,), "z")[2])
        assert torch.allclose(z[-1], samples.normal((6,), "z")[3])
        assert torch.equal(walk.normal((2, 2), 7), samples.normal((2, 2), 7)[2].expand(COLUMNS, -1, -1))
        assert set(walk.randint(1000, "class").tolist()) == {samples.randint(1000, "class")[2].item()}

    def test_picture_is_drawn_once_and_noted(self, tmp_path):
        write_json(tmp_path / "sampling.json", {"images": 9})
        images, walks = torch.rand(WALKS, COLUMNS, 3, 8, 8) * 2 - 1, []

        def draw_walk(walk):
            walks.append(walk)
            return images[walk]

        for _ in range(2):
            draw_interpolation(tmp_path, draw_walk, latent="z", sampler="none")
        assert walks == list(range(WALKS))
        record = read_json(tmp_path / "sampling.json")
        assert (record["images"], record["interpolation"]["columns"]) == (9, COLUMNS)
        save_grid(to_uint8(images.flatten(0, 1)), tmp_path / "expected.png", columns=COLUMNS)
        assert Image.open(tmp_path / "interpolation.png").tobytes() == Image.open(tmp_path / "expected.png").tobytes()
        with pytest.raises(UserError, match="not finite"):
            draw_interpolation(tmp_path, lambda walk: images[walk] * torch.inf, latent="z", sampler="other")


class TestRunFolder:
    def make_run(self, folder):
        run = Run.open(folder, {"lr": 1}, model="gans")
        run.start()
        run.log_row(10, 40, 1.5, loss=1)
        run.finish("max_steps 20", steps=20, images_seen=80, wall_seconds=3.0)

    def test_training_of_a_checkpoint_is_found_in_the_files_of_its_run(self, tmp_path):
        self.make_run(tmp_path)
        assert trained_facts(tmp_path, 10) == {"step": 10, "images_seen": 40, "wall_seconds": 1.5}
        assert trained_facts(tmp_path, 20) == {"step": 20, "images_seen": 80, "wall_seconds": 3.0}
        assert trained_facts(tmp_path, 15) == {"step": 15, "images_seen": None, "wall_seconds": None}
        assert trained_facts(tmp_path, 20, 81, 4.0) == {"step": 20, "images_seen": 81, "wall_seconds": 4.0}
        unknown = {"step": None, "images_seen": None, "wall_seconds": None}
        assert trained_facts(tmp_path / "elsewhere", None) == unknown

    def test_fresh_deletes_other_settings_and_earlier_samples_but_nothing_of_the_users(self, tmp_path):
        self.make_run(tmp_path)
        for name in ("settings/ddim10", "history/25", "history/50", "."):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            for file in ("samples.npz", "sampling.json", "metrics.json", "timing.json", "interpolation.png"):
                (tmp_path / name / file).touch()
        (tmp_path / "history" / "50" / "thesis.txt").touch()
        Run.open(tmp_path, {"lr": 2}, model="gans", fresh=True).start()
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
        assert left == {"config.json", "history/50/thesis.txt"}
        assert not (tmp_path / "settings").exists()
        assert not (tmp_path / "history" / "25").exists()
