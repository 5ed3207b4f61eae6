"""The random embedding is the same everywhere and sees what it should."""

import numpy as np
import torch
from comparison import features, shapes


def noise(n, size=32):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8))


def test_weights_are_those_that_published_reports_used():
    assert features.fingerprint() == "a6d65407fb919d96"  # a change here makes older reports incomparable


def test_weights_do_not_depend_on_torch_seeds():
    torch.manual_seed(1)
    before = features.weights.__wrapped__()[0][0]
    torch.manual_seed(2)
    assert torch.equal(before, features.weights.__wrapped__()[0][0])


def test_embedding_does_not_depend_on_the_batch():
    images = noise(7)
    whole = features.embed(images)
    parts = torch.cat([features.embed(images[:3]), features.embed(images[3:])])
    assert whole.shape == (7, features.DIMENSIONS)
    assert torch.allclose(whole, parts, atol=1e-5)


def test_any_image_size_gives_the_same_number_of_features():
    for size in (8, 16, 33, 64):
        assert features.embed(noise(2, size)).shape == (2, features.DIMENSIONS)


def test_scale_makes_the_reference_standard():
    x = features.embed(shapes.dataset(10, 32, limit=300)[0])
    z = features.Scale.of(x)(x)
    assert z.mean(0).abs().max() < 1e-3
    assert (z.std(0) - 1).abs().max() < 1e-2


def test_cache_gives_the_same_features_and_survives_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.setattr(features, "CACHE_FROM", 4)
    images = noise(5)
    first = features.embed_cached(images, "abc")
    (file,) = (tmp_path / "cache").iterdir()
    assert torch.equal(first, features.embed_cached(images, "abc"))
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(first, features.embed_cached(images, "abc"))


def test_embedding_knows_where_things_are():
    images, labels = shapes.dataset(200, 32, limit=400)
    x = features.Scale.of(features.embed(images))(features.embed(images))
    table = shapes.modes(200)
    left = torch.tensor([table[label].position.endswith("left") for label in labels.tolist()])
    assert (x[left].mean(0) - x[~left].mean(0)).abs().max() > 0.5
