"""The standard scores, by the networks of both libraries with random weights, since tests download nothing."""

import hashlib
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from comparison.cli import UserError
from comparison.data import shapes
from comparison.data.images import fingerprint, save_npz
from comparison.scores import inception, standard
from comparison.scores.distances import kernel_estimate, kernel_self
from comparison.scores.metrics import frechet, moments
from comparison.scores.statistics import Statistics, read_statistics, write_statistics

pytest.importorskip("torch_fidelity")
from torch_fidelity import feature_extractor_inceptionv3, metric_fid, metric_isc

ROOT = Path(__file__).parents[2]
N = 24


def fid_score():
    """pytorch-fid's formula, which needs a SciPy older than 1.18."""
    module = pytest.importorskip("pytorch_fid.fid_score")
    if tuple(map(int, metadata.version("scipy").split(".")[:2])) >= (1, 18):
        pytest.skip("pytorch-fid 0.3.0 calls an argument that SciPy 1.18 removed")
    return module


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights under the true one's name."""
    with (
        mock.patch.object(feature_extractor_inceptionv3, "load_state_dict_from_url", return_value={}),
        mock.patch.object(feature_extractor_inceptionv3.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3("random", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim == 4:  # so that the features of different images differ after 90 layers
            torch.nn.init.kaiming_normal_(parameter, generator=generator)
    path = tmp_path_factory.mktemp("weights") / inception.WEIGHTS
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def expected(weights):
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def sets():
    """Two sets of small pictures."""
    return shapes.dataset(10, 32, limit=N)[0], shapes.dataset(200, 32, split="test", limit=N)[0]


@pytest.fixture(scope="module")
def scored(weights, expected, sets):
    """One true run of `score`, and what `embed` gave in it: (library, fingerprint) -> outputs."""
    seen, embed = {}, inception.embed

    def recorded(images, library, *rest):
        return seen.setdefault((library, fingerprint(images)), embed(images, library, *rest))

    with mock.patch.object(standard, "embed", recorded), mock.patch.object(inception, "embed", recorded):
        result = standard.score(*sets, weights=weights, expected=expected, seed=3)
    return result, seen


@pytest.fixture
def replayed(monkeypatch, scored):
    """Let `embed` answer from the recorded run."""

    def replay(images, library, *_):
        return scored[1][library, fingerprint(images)]

    monkeypatch.setattr(standard, "embed", replay)
    monkeypatch.setattr(inception, "embed", replay)


def normal(n, d, shift=0.0, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, d)) / np.arange(1, d + 1) + shift
    return torch.from_numpy(x).float()


def test_section_holds_every_score_and_what_it_was_taken_with(scored, weights, expected, sets):
    result = json.loads(json.dumps(scored[0]))
    names = ["fid", "kid", "inception_score", "inception_precision", "inception_recall"]
    if inception.installed("pytorch-fid"):
        names.append("pytorch_fid")
    assert list(result["metrics"]) == names
    for entry in result["metrics"].values():
        assert entry["interval"][0] <= entry["value"] <= entry["interval"][1]
        assert entry["n"] == N
    assert result["weights"]["file"] == weights.name
    assert result["weights"]["sha256"].startswith(expected)
    assert len(result["weights"]["sha256"]) == 64
    assert result["reference"] == {"kind": "images", "n": N, "fingerprint": fingerprint(sets[1])}
    assert (result["protocol"]["kid_subsets"], result["protocol"]["kid_subset_size"]) == (1, N)
    assert result["libraries"][0] == "torch-fidelity 0.4.0"


def test_both_libraries_hold_the_same_network(scored, weights, sets):
    pytest.importorskip("pytorch_fid")
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    with mock.patch("pytorch_fid.inception.load_state_dict_from_url", return_value=torch.load(weights)):
        from pytorch_fid.inception import InceptionV3

        network = InceptionV3(resize_input=False, normalize_input=False).eval()
    images = interpolate_bilinear_2d_like_tensorflow1x(sets[0][:4].float(), (299, 299), align_corners=False)
    with torch.inference_mode():
        found = network((images - 128) / 128)[0].flatten(1)
    theirs = scored[1]["torch-fidelity", fingerprint(sets[0])][0]
    assert (found - theirs[:4]).abs().max() < 1e-4 * (theirs - theirs.mean(0)).abs().max()


def test_libraries_differ_by_no_more_than_their_ways_to_enlarge_and_scale(scored):
    pytest.importorskip("pytorch_fid")
    values = [scored[0]["metrics"][name]["value"] for name in ("fid", "pytorch_fid")]
    assert values[0] == pytest.approx(values[1], rel=0.03)
    assert values[0] > 0.05


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated")
@pytest.mark.parametrize("n", [40, 64, 65, 300])
def test_frechet_distance_is_the_libraries_own(n):
    x, real = normal(n, 64, 0.1), normal(200, 64, seed=1)
    found = standard.frechet_estimate(*moments(real), x)
    statistics = [metric_fid.fid_features_to_statistics(part.double()) for part in (x, real)]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert found.value == pytest.approx(theirs, rel=1e-5)
    if n > 64:
        (mu, sigma), (real_mu, real_sigma) = ((part["mu"], part["sigma"]) for part in statistics)
        theirs = fid_score().calculate_frechet_distance(mu, sigma, real_mu, real_sigma)
        assert found.value == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("n", [40, 200])
def test_interval_is_that_of_leaving_groups_out(n):
    from comparison.scores.metrics import jackknife, split_groups

    x, real = normal(n, 64, 0.1), moments(normal(200, 64, seed=1))
    parts = [torch.cat([x[: group.start], x[group.stop :]]) for group in split_groups(n)]
    direct = jackknife(frechet(*real, *moments(x)), [frechet(*real, *moments(part)) for part in parts], n, low=0)
    found = standard.frechet_estimate(*real, x)
    assert (found.low, found.high) == pytest.approx((direct.low, direct.high), rel=1e-5)


def test_kernel_distance_of_one_subset_is_that_over_all_pairs():
    x, real = normal(60, 16, 0.3), normal(60, 16, seed=1)
    found, pairs = standard.kernel_inception_distance(x, real, 0), kernel_estimate(real, kernel_self(real), x)
    assert found.value == pytest.approx(pairs.value, rel=1e-3)
    assert (found.low, found.high) == pytest.approx((pairs.low, pairs.high), rel=1e-2)
    assert standard.kid_subsets(60, 60) == (1, 60)
    assert standard.kid_subsets(60, 61) == (100, 60)
    assert standard.kid_subsets(5000, 5000) == (100, 1000)


def test_subsets_of_the_kernel_distance_widen_its_interval_and_follow_the_seed(monkeypatch):
    monkeypatch.setattr(standard, "SUBSET_SIZE", 10)
    x, real = normal(100, 16, 0.3), normal(100, 16, seed=1)
    found, pairs = standard.kernel_inception_distance(x, real, 0), kernel_estimate(real, kernel_self(real), x)
    assert found.high - found.low > pairs.high - pairs.low
    assert found.low < pairs.value < found.high
    assert standard.kernel_inception_distance(x, real, 0) == found
    assert standard.kernel_inception_distance(x, real, 1).value != found.value


def test_inception_score_is_the_mean_over_ten_splits():
    logits = normal(50, 1008) * 50
    found = standard.inception_score(logits)
    theirs = metric_isc.isc_features_to_metric(logits, 10, shuffle=False)
    assert found.value == pytest.approx(theirs["inception_score_mean"])
    half = 2.262 * theirs["inception_score_std"] / 3  # Student's t of nine degrees of freedom
    assert found.high - found.value == pytest.approx(half, rel=1e-2)
    assert standard.inception_score(torch.zeros(50, 1008)).value == pytest.approx(1)


def test_statistics_in_place_of_images_allow_fid_and_inception_score_only(scored, sets, weights, expected, replayed):
    mu, sigma = moments(scored[1]["torch-fidelity", fingerprint(sets[1])][0])
    reference = Statistics(mu.numpy(), sigma.numpy(), "cifar10_train", "0123", "torch-fidelity 0.4.0", 50)
    found = standard.score(sets[0], reference, weights=weights, expected=expected)
    assert set(found["metrics"]) - {"pytorch_fid"} == {"fid", "inception_score"}
    assert found["metrics"]["fid"]["value"] == pytest.approx(scored[0]["metrics"]["fid"]["value"])
    assert found["reference"] == reference.describe()
    assert found["reference"]["name"] == "cifar10_train"


def test_without_pytorch_fid_its_score_is_left_out(scored, sets, weights, expected, replayed, monkeypatch):
    monkeypatch.setattr(standard, "installed", lambda library: library == "torch-fidelity")
    found = standard.score(*sets, weights=weights, expected=expected, seed=3)
    rest = {name: entry for name, entry in scored[0]["metrics"].items() if name != "pytorch_fid"}
    assert found["metrics"] == rest


def test_without_torch_fidelity_there_is_no_score(sets, weights, expected, monkeypatch):
    monkeypatch.setattr(inception.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install torch-fidelity==0\.4\.0"):
        standard.score(*sets, weights=weights, expected=expected)


def test_other_weights_never_give_a_score(sets, weights, tmp_path):
    with pytest.raises(UserError, match="not the standard Inception weights, or damaged: its SHA-256 begins"):
        standard.score(*sets, weights=weights)
    with pytest.raises(UserError, match=r"nothing\.pth: not readable"):
        inception.check_weights(tmp_path / "nothing.pth")


def test_unfit_images_are_refused(sets, weights, expected):
    known = {"weights": weights, "expected": expected}
    with pytest.raises(UserError, match="at least 20 images in each set, not 5"):
        standard.score(sets[0][:5], sets[1], **known)
    with pytest.raises(ValueError, match="must be uint8"):
        standard.score(sets[0].float(), sets[1], **known)


def test_features_of_the_reference_are_kept_by_content(tmp_path, sets, weights, monkeypatch):
    calls = []

    def count(images, *_):
        calls.append(len(images))
        return [images.float().mean((1, 2, 3))[:, None].expand(-1, inception.DIMENSIONS).contiguous()]

    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.setattr(inception, "embed", count)

    def features(images, library="torch-fidelity", digest="a" * 64):
        return inception.embed_reference(images, library, weights, digest, "cpu")

    features(sets[0])
    features(sets[0])
    assert calls == [N, N]  # too few to be kept
    monkeypatch.setattr(inception, "CACHE_FROM", N)
    first = features(sets[0])
    assert torch.equal(features(sets[0].clone()), first)
    assert len(calls) == 3
    assert not torch.equal(features(sets[1]), first)
    features(sets[0], digest="b" * 64)
    if inception.installed("pytorch-fid"):
        features(sets[0], "pytorch-fid")
    assert len(calls) == 5 + inception.installed("pytorch-fid")


# Where the weights lie


@pytest.mark.parametrize("name", [inception.WEIGHTS, inception.WEIGHTS_ELSEWHERE])
def test_weights_are_found_under_either_librarys_name(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert inception.find_weights(None) == path
    with pytest.raises(UserError, match=r"--inception_weights .*x\.pth: no such file"):
        inception.find_weights(tmp_path / "x.pth")


def test_missing_weights_are_downloaded_or_the_error_says_which_file_goes_where(
    tmp_path, monkeypatch, weights, expected
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(inception, "WEIGHTS_URL", "file:///no/such/file")
    folder = tmp_path / "hub" / "checkpoints"
    with pytest.raises(UserError, match=f"put {inception.WEIGHTS} from .* into {folder}") as error:
        inception.find_weights(None)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(inception, "WEIGHTS_URL", weights.as_uri())
    with pytest.raises(UserError, match="invalid hash"):
        inception.find_weights(None)
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(inception, "SHA256_PREFIX", expected)
    found = inception.find_weights(None)
    assert found == folder / inception.WEIGHTS
    assert inception.check_weights(found).startswith(expected)


# make_stats.py


@pytest.fixture
def place(tmp_path, monkeypatch, sets, weights, expected):
    """A folder with images.npz, where the random weights count as the standard ones."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setattr(inception, "SHA256_PREFIX", expected)
    save_npz(tmp_path / "images.npz", sets[0].permute(0, 2, 3, 1).numpy())
    return tmp_path


def test_statistics_of_images_are_made_and_kept_from_overwriting(place, script, weights, sets, scored, replayed):
    args = ("images.npz", "--inception_weights", weights, "--device", "cpu", "--threads", 1, "--out", "new/real.npz")
    done = script(place, "make_stats.py", *args)
    assert done.returncode == 0, done.stderr
    assert f"{N} images are too few for a full-rank covariance" in done.stdout
    found = read_statistics(place / "new" / "real.npz")
    assert (found.made_by, found.images) == ("torch-fidelity 0.4.0", N)
    mu, sigma = moments(scored[1]["torch-fidelity", fingerprint(sets[0])][0])
    np.testing.assert_array_equal(found.mu, mu)
    np.testing.assert_array_equal(found.sigma, sigma)
    before = (place / "new" / "real.npz").read_bytes()
    done = script(place, "make_stats.py", *args)
    assert (done.returncode, (place / "new" / "real.npz").read_bytes()) == (2, before)
    assert "exists; name another file, or add --overwrite" in done.stderr
    if inception.installed("pytorch-fid"):
        assert script(place, "make_stats.py", *args, "--overwrite", "--library", "pytorch-fid").returncode == 0
        assert read_statistics(place / "new" / "real.npz").made_by == "pytorch-fid 0.3.0"
        assert (place / "new" / "real.npz").read_bytes() != before


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("nowhere", "--out", "a.npz"), "SOURCE nowhere: neither shapes, cifar10"),
        (("images.npz", "--out", "a.txt"), "--out a.txt: must end in .npz"),
        (("images.npz", "--out", "images.npz"), "--out images.npz: exists"),
        (("images.npz", "--out", "a.npz", "--num_images", 1), "--num_images 1: a covariance needs at least 2"),
        (("images.npz", "--out", "a.npz", "--inception_weights", "images.npz"), "not the standard Inception weights"),
        (("stats.npz", "--out", "a.npz"), "stats.npz: holds statistics, not images"),
    ],
)
def test_wrong_paths_and_flags_of_make_stats_are_one_sentence(tmp_path, script, args, says):
    save_npz(tmp_path / "images.npz", np.zeros((4, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    done = script(tmp_path, "make_stats.py", *args)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "a.npz").exists()


# python -m pytorch_fid


@pytest.fixture
def pytorch_fid(tmp_path, weights, sets):
    """Return a function of statistics -> the FID that the command prints for the first set as PNG files."""
    fid_score()
    home = tmp_path / "torch" / "hub" / "checkpoints"
    home.mkdir(parents=True)
    (home / inception.WEIGHTS_ELSEWHERE).symlink_to(weights)

    def call(statistics):
        save_npz(tmp_path / "samples.npz", sets[0].permute(0, 2, 3, 1).numpy())
        to_png = [sys.executable, ROOT / "improved-diffusion" / "scripts" / "npztodir.py", "samples.npz", "png"]
        subprocess.run(to_png, cwd=tmp_path, check=True, capture_output=True)
        environment = os.environ | {"TORCH_HOME": str(tmp_path / "torch"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytorch_fid", statistics, "png", "--num-workers", "0", "--device", "cpu"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return float(done.stdout.split("FID:")[1])

    return call


@pytest.mark.slow
def test_command_of_pytorch_fid_gives_the_reported_number(tmp_path, scored, sets, pytorch_fid):
    mu, sigma = moments(scored[1]["pytorch-fid", fingerprint(sets[1])][0])
    write_statistics(tmp_path / "real.npz", mu.numpy(), sigma.numpy())
    assert pytorch_fid("real.npz") == pytest.approx(scored[0]["metrics"]["pytorch_fid"]["value"], rel=1e-3)


@pytest.mark.slow
def test_scores_are_those_of_torch_fidelitys_own_call(scored, sets, weights):
    from torch_fidelity import calculate_metrics

    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            return self.images[i]

    theirs = calculate_metrics(
        input1=Images(sets[0]),
        input2=Images(sets[1]),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=weights,
        **{"isc": True, "fid": True, "kid": True, "prc": True, "kid_subset_size": N, "samples_shuffle": False},
        **{"cuda": False, "cache": False, "save_cpu_ram": True, "verbose": False},
    )
    ours = {name: entry["value"] for name, entry in scored[0]["metrics"].items()}
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-2)
    assert ours["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert ours["inception_precision"] == pytest.approx(theirs["precision"])
    assert ours["inception_recall"] == pytest.approx(theirs["recall"])
