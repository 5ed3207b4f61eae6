"""Reference statistics: files are exchanged with other tools, and damaged ones are reported."""

import pickle
import zipfile

import numpy as np
import pytest
from comparison.cli import UserError
from comparison.scores import statistics
from comparison.scores.statistics import is_statistics, read_statistics, write_statistics

SIZE = 32


@pytest.fixture
def arrays(monkeypatch):
    """A mean and a covariance of rank 3, of few features: files of the real ones are 33 MB."""
    monkeypatch.setattr(statistics, "DIMENSIONS", SIZE)
    rng = np.random.default_rng(0)
    root = rng.standard_normal((SIZE, 3))
    return rng.standard_normal(SIZE), root @ root.T


def test_written_statistics_read_back_with_their_origin(tmp_path, arrays):
    write_statistics(tmp_path / "real.npz", *arrays, made_by="torch-fidelity 0.4.0", images=50)
    found = read_statistics(tmp_path / "real.npz")
    np.testing.assert_array_equal(found.mu, arrays[0])
    np.testing.assert_array_equal(found.sigma, arrays[1])
    assert (found.name, found.made_by, found.images) == ("real", "torch-fidelity 0.4.0", 50)
    assert [path.name for path in tmp_path.iterdir()] == ["real.npz"]


def test_statistics_of_pytorch_fid_and_of_ddgan_are_the_same_ones(tmp_path, arrays):
    mu, sigma = arrays
    np.savez_compressed(tmp_path / "a.npz", mu=mu, sigma=sigma)
    np.save(tmp_path / "b.npy", {"mu": mu, "sigma": sigma}, allow_pickle=True)
    found = [read_statistics(tmp_path / name) for name in ("a.npz", "b.npy")]
    np.testing.assert_array_equal(found[1].sigma, sigma)
    assert found[0].fingerprint == found[1].fingerprint
    assert found[0].made_by is found[0].images is None
    write_statistics(tmp_path / "c.npz", mu + 1e-9, sigma)
    assert read_statistics(tmp_path / "c.npz").fingerprint != found[0].fingerprint


def test_statistics_of_other_than_2048_features_are_no_reference(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(UserError, match=r"not of the shapes \(2048,\) and \(2048, 2048\)"):
        read_statistics(tmp_path / "a.npz")


def test_single_precision_is_good_enough(tmp_path, arrays):
    sigma = arrays[1].astype(np.float32)
    sigma[0, 1] *= 1 + 1e-6
    np.savez(tmp_path / "a.npz", mu=arrays[0].astype(np.float32), sigma=sigma)
    assert read_statistics(tmp_path / "a.npz").sigma.dtype == np.float64


def test_pytorch_fid_reads_what_is_written(tmp_path, arrays):
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    write_statistics(tmp_path / "real.npz", *arrays, made_by="us", images=50)
    mu, sigma = fid_score.compute_statistics_of_path(str(tmp_path / "real.npz"), None, 50, SIZE, "cpu")
    np.testing.assert_array_equal(mu, arrays[0])
    np.testing.assert_array_equal(sigma, arrays[1])


def test_a_pickle_runs_no_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for name, content in (("a.npy", Harmful()), ("b.npy", {"mu": Harmful(), "sigma": 0})):
        np.save(tmp_path / name, np.array(content, dtype=object), allow_pickle=True)
        with pytest.raises(UserError, match="refused"):
            read_statistics(tmp_path / name)
    np.savez(tmp_path / "c.npz", mu=np.array(Harmful(), dtype=object), sigma=np.zeros(1))
    with pytest.raises(UserError, match="holds no readable arrays"):
        read_statistics(tmp_path / "c.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda mu, sigma: (mu, sigma + np.eye(SIZE, k=1)), "not symmetric"),
        (lambda mu, sigma: (mu * np.nan, sigma), "not finite"),
        (lambda mu, sigma: (mu, -sigma), "below 0"),
        (lambda mu, sigma: (mu[:8], sigma), r"mu \(8,\)"),
        (lambda mu, sigma: (mu[:8], sigma[:8, :8]), r"sigma \(8, 8\)"),
    ],
)
def test_what_is_no_mean_and_covariance_is_neither_read_nor_written(tmp_path, arrays, damage, says):
    mu, sigma = damage(*arrays)
    np.savez(tmp_path / "a.npz", mu=mu, sigma=sigma)
    with pytest.raises(UserError, match=f"a.npz: .*{says}") as error:
        read_statistics(tmp_path / "a.npz")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=says):
        write_statistics(tmp_path / "b.npz", mu, sigma)
    assert not (tmp_path / "b.npz").exists()


def test_damaged_and_foreign_files_are_one_sentence(tmp_path, arrays):
    mu, sigma = arrays
    np.savez(tmp_path / "whole.npz", mu=mu, sigma=sigma)
    np.save(tmp_path / "whole.npy", {"mu": mu, "sigma": sigma}, allow_pickle=True)
    for suffix in (".npz", ".npy"):
        content = (tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(content[: len(content) // 2])
        (tmp_path / f"empty{suffix}").write_bytes(b"")
    (tmp_path / "plain.npy").write_bytes(pickle.dumps({"mu": mu}))
    np.save(tmp_path / "array.npy", mu)
    np.save(tmp_path / "list.npy", np.array([mu, None], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "half.npz", mu=mu)
    (tmp_path / "zip.npz").write_bytes(b"PK" + bytes(100))
    (tmp_path / "text.txt").write_text("mu")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("mu", "no array")
    wrong = [path for path in tmp_path.iterdir() if not path.name.startswith("whole")]
    assert len(wrong) == 12
    for path in [*wrong, tmp_path / "missing.npz"]:
        with pytest.raises(UserError, match=path.name) as error:
            read_statistics(path)
        assert "\n" not in str(error.value)


def test_statistics_are_told_from_images_by_what_they_hold(tmp_path, arrays):
    write_statistics(tmp_path / "real.npz", *arrays)
    np.save(tmp_path / "real.npy", {"mu": 0}, allow_pickle=True)
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    told = {path.name for path in tmp_path.iterdir() if is_statistics(path)}
    assert told == {"real.npz", "real.npy"}
    assert not is_statistics("cifar10")
    assert not is_statistics(tmp_path)
    assert is_statistics(str(tmp_path / "real.npz"))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, arrays, monkeypatch):
    write_statistics(tmp_path / "real.npz", *arrays)
    before = (tmp_path / "real.npz").read_bytes()

    def full(file, **arrays):
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="No space left"):
        write_statistics(tmp_path / "real.npz", *arrays)
    assert (tmp_path / "real.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["real.npz"]
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        write_statistics(tmp_path / "real.txt", *arrays)
