"""The extractors are the same everywhere and see what they should."""

import numpy as np
import torch
from comparison.data.images import CIFAR10_CLASSES, ImageSet
from comparison.scores import classifier, features


def noise(n, size=32):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8))


def test_weights_are_those_that_published_reports_used():
    assert features.fingerprint() == "a6d65407fb919d96"  # a change here makes older reports incomparable


def test_embedding_does_not_depend_on_the_batch():
    images = noise(7)
    for extractor in (features.RandomEmbedding(), features.ClassifierFeatures()):
        whole = extractor(images)
        parts = torch.cat([extractor(images[:3]), extractor(images[3:])])
        assert whole.shape == (7, extractor.dimensions)
        assert torch.allclose(whole, parts, atol=1e-5)


def test_any_image_size_gives_the_same_number_of_features():
    for size in (8, 16, 33, 64):
        for extractor in (features.RandomEmbedding(), features.ClassifierFeatures()):
            assert extractor(noise(2, size)).shape == (2, extractor.dimensions)


def test_cache_gives_the_same_features_and_survives_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.setattr(features, "CACHE_FROM", 4)
    images, extractor, calls = noise(5), features.RandomEmbedding(), []

    def compute():
        calls.append(1)
        return extractor(images)

    first = features.cached("abc", 5, extractor, compute)
    (file,) = (tmp_path / "cache").iterdir()
    assert extractor.describe()["fingerprint"] in file.name
    assert torch.equal(first, features.cached("abc", 5, extractor, compute))
    assert len(calls) == 1
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(first, features.cached("abc", 5, extractor, compute))
    assert len(calls) == 2
    features.cached("abc", 5, features.ClassifierFeatures(), lambda: features.ClassifierFeatures()(images))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_auto_takes_the_classifier_for_its_ten_classes_only():
    def set_of(class_names):
        return ImageSet(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), None, class_names, "x", "0")

    assert features.choose_key("auto", set_of(CIFAR10_CLASSES)) == "cifar"
    assert features.choose_key("auto", set_of(("circle", "square"))) == "random"
    assert features.choose_key("random", set_of(CIFAR10_CLASSES)) == "random"
    assert features.choose_key("cifar", set_of(())) == "cifar"


def test_classes_come_from_the_pooled_features():
    images, extractor = noise(6), features.ClassifierFeatures()
    assert torch.equal(extractor.classes(extractor(images)), classifier.load()(images)[1].argmax(1))
    assert features.RandomEmbedding().classes(features.RandomEmbedding()(images)) is None
