"""Diagnosis: what it measures, what it says, and that it leaves the training as it is."""

import pytest
import torch
from comparison.checkpoints import save_checkpoint
from comparison.data.held_out import load_data, test_split
from comparison.data.images import ImageSet, fingerprint
from gan import diagnostics
from gan.build import build_gan
from gan.diagnostics import HeldOutProbe, Scorer
from gan.scores import Scores
from PIL import Image

OPTIONS = {"image_size": 16, "nz": 8, "ngf": 4, "ndf": 4, "seed": 0}
test_split.__test__ = False


def pictures(n, seed=0):
    return torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def image_set(n):
    images = pictures(n)
    return ImageSet(images, None, (), "pictures", fingerprint(images))


def states(gan):
    networks = gan.generator, gan.discriminator
    return [value.clone() for network in networks for value in network.state_dict().values()]


@pytest.mark.parametrize("norm", ["batch", "spectral"])
def test_probe_and_scorer_change_no_weight_no_statistic_and_no_random_number(norm):
    gan = build_gan({**OPTIONS, "d_norm": norm}, "cpu", None)
    before, random = states(gan), torch.get_rng_state()
    found = HeldOutProbe(pictures(12), 0)(gan, torch.zeros(8, 3, 16, 16), 0)
    scorer = Scorer(image_set(40), 20, 0, torch.device("cpu"), 7)
    score = scorer(gan.generator, None)
    assert found.keys() == {"d_held_out", "gap"}
    assert score.keys() == {"frechet_distance", "coverage"}
    assert torch.equal(torch.get_rng_state(), random)
    assert gan.generator.training
    assert all(torch.equal(a, b) for a, b in zip(before, states(gan), strict=True))


def test_gap_opens_where_the_discriminator_knows_its_training_images_by_heart():
    gan = build_gan({**OPTIONS, "d_norm": "none"}, "cpu", None)
    real = pictures(8, seed=1).float() / 127.5 - 1
    optimizer = torch.optim.Adam(gan.discriminator.parameters(), lr=1e-2)
    unseen = HeldOutProbe(pictures(8, seed=2), 0)
    assert abs(unseen(gan, real, 0)["gap"]) < 0.1
    for _ in range(20):
        optimizer.zero_grad()
        (-gan.discriminator(real).mean() + gan.discriminator(torch.rand_like(real) * 2 - 1).mean()).backward()
        optimizer.step()
    assert unseen(gan, real, 0)["gap"] > 0.5
    known = HeldOutProbe(pictures(8, seed=1), 0)(gan, real, 0)
    assert abs(known["gap"]) < 1e-3


def test_score_of_the_training_images_themselves_is_perfect(monkeypatch):
    data = image_set(60)
    scorer = Scorer(data, 60, 0, torch.device("cpu"), 25)
    drawn = data.images.float() / 127.5 - 1
    monkeypatch.setattr(
        "gan.diagnostics.sample_in_eval_mode", lambda g, indices, *_: drawn[indices.start : indices.stop]
    )
    score = scorer(None, None)
    assert score["frechet_distance"] == pytest.approx(0, abs=1e-2)
    assert score["coverage"] == 1
    one = drawn[:1].expand(60, -1, -1, -1) + torch.linspace(0, 1e-2, 60)[:, None, None, None]
    monkeypatch.setattr(diagnostics, "sample_in_eval_mode", lambda g, i, *_: one[i.start : i.stop])
    collapsed = scorer(None, None)
    assert collapsed["coverage"] < 0.2
    assert collapsed["frechet_distance"] > 10


def score(distance, coverage=0.5):
    return {"frechet_distance": distance, "coverage": coverage}


def checkpoint(folder, step):
    save_checkpoint(folder / f"checkpoint_{step:06d}.pt", {"step": step}, model="gans")


def test_best_checkpoint_is_kept_until_a_better_one_comes(tmp_path):
    scores = Scores(tmp_path, 0, keep_best=True)
    for step, distance in ((10, 5.0), (20, 4.0), (30, 6.0)):
        checkpoint(tmp_path, step)
        scores.add(step, 8 * step, 1.0, score(distance))
        scores.keep()
    assert [path.name for path in tmp_path.glob("best_*.pt")] == ["best_000020.pt"]
    assert not scores.is_best()


def test_scores_and_best_checkpoint_of_a_future_that_is_gone_are_dropped(tmp_path):
    scores = Scores(tmp_path, 0, keep_best=True)
    for step, distance in ((10, 5.0), (20, 4.0)):
        checkpoint(tmp_path, step)
        scores.add(step, 8 * step, 1.0, score(distance))
        scores.keep()
    resumed = Scores(tmp_path, 10, keep_best=True)
    assert (resumed.last_step, len(resumed.rows)) == (10, 1)
    assert [path.name for path in tmp_path.glob("best_*.pt")] == ["best_000010.pt"]  # its checkpoint is still there
    Scores(tmp_path, 0, keep_best=True)
    assert not list(tmp_path.glob("best_*.pt"))
    assert not (tmp_path / "scores.csv").exists()


@pytest.fixture
def folder(tmp_path):
    for name, count in (("train", 40), ("test", 7)):
        (tmp_path / name).mkdir()
        for number, pixels in enumerate(pictures(count, seed=len(name)).permute(0, 2, 3, 1).numpy()):
            Image.fromarray(pixels).save(tmp_path / name / f"{number:02d}.png")
    return tmp_path


def keys(images):
    return {image.numpy().tobytes() for image in images}


def test_held_out_images_come_from_the_test_folder_beside_train(folder):
    data, held_out = load_data(str(folder / "train"), 16, held_out=5)
    whole, none = load_data(str(folder / "train"), 16)
    assert (len(data), len(held_out), len(none)) == (40, 5, 0)
    assert data.fingerprint == whole.fingerprint
    assert not keys(held_out) & keys(data.images)


def test_elsewhere_at_most_a_tenth_is_kept_aside_and_never_trained_on(folder):
    (folder / "train").rename(folder / "pictures")
    data, held_out = load_data(str(folder / "pictures"), 16, held_out=1000)
    assert (len(data), len(held_out)) == (36, 4)
    assert not keys(held_out) & keys(data.images)
    assert len(keys(held_out) | keys(data.images)) == 40
    part, held_out = load_data(str(folder / "pictures"), 16, limit=36, held_out=1000)
    assert (len(part), len(held_out)) == (36, 4)
    assert len(load_data(str(folder / "pictures"), 16, held_out=4, at_least=38)[1]) == 2


def test_test_split_of_known_sources_is_used():
    assert test_split("shapes:10") == ("shapes:10", "test")
    assert test_split("cifar10") == ("cifar10", "test")
    assert test_split("pictures.npz") is None
