"""Run folders, checkpoints, random numbers, command lines and sample sets."""

import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from comparison import cli, files, rng
from comparison.checkpoints import load_checkpoint, save_checkpoint
from comparison.cli import UserError
from comparison.device import pick_device
from comparison.files import read_json
from comparison.runs import Run, read_progress
from comparison.sampling.draw import draw_samples
from comparison.training import Budget


def open_run(folder, **options):
    run = Run.open(folder, {"lr": 0.1, "batch_size": 4, **options}, model="gans")
    run.start()
    return run


class TestRun:
    def test_other_options_are_refused_and_named(self, tmp_path):
        open_run(tmp_path)
        with pytest.raises(UserError, match=r"holds another run: batch_size 4 there, 8 here; lr 0\.1 there, 0\.2 here"):
            Run.open(tmp_path, {"lr": 0.2, "batch_size": 8}, model="gans")

    def test_option_that_came_later_counts_only_where_it_is_on(self, tmp_path):
        open_run(tmp_path)
        Run.open(tmp_path, {"lr": 0.1, "batch_size": 4, "class_dropout": 0.0}, model="gans")
        with pytest.raises(UserError, match=r"class_dropout None there, 0\.1 here"):
            Run.open(tmp_path, {"lr": 0.1, "batch_size": 4, "class_dropout": 0.1}, model="gans")
        with pytest.raises(UserError, match="batch_size 4 there, 0 here"):
            Run.open(tmp_path, {"lr": 0.1, "batch_size": 0}, model="gans")

    def test_option_that_no_longer_exists_is_ignored_unless_it_was_on(self, tmp_path):
        open_run(tmp_path / "a", old_flag=3)
        assert Run.open(tmp_path / "a", {"lr": 0.1, "batch_size": 4}, model="gans").resumed
        open_run(tmp_path / "b", label_smoothing="one_sided", nc=3)
        with pytest.raises(UserError, match="label_smoothing one_sided there, none always here"):
            Run.open(tmp_path / "b", {"lr": 0.1, "batch_size": 4}, model="gans")

    @pytest.mark.parametrize("fresh", [False, True])
    def test_another_model_is_refused(self, tmp_path, fresh):
        open_run(tmp_path)
        with pytest.raises(UserError, match="holds a run of gans, not of ddgan"):
            Run.open(tmp_path, {"lr": 0.1, "batch_size": 4}, model="ddgan", fresh=fresh)

    def test_budget_may_grow(self, tmp_path):
        run = open_run(tmp_path, max_steps=10)
        run.finish("max_steps 10", steps=10, images_seen=40, wall_seconds=1.0)
        again = Run.open(tmp_path, {"lr": 0.1, "batch_size": 4, "max_steps": 20}, model="gans")
        assert again.finished_reason(Budget(max_steps=10)) == "max_steps 10"
        assert again.finished_reason(Budget(max_steps=20)) is None

    def test_fresh_deletes_the_run_only_when_the_new_one_starts(self, tmp_path):
        open_run(tmp_path)
        (tmp_path / "checkpoint_000001.pt").write_bytes(b"x")
        (tmp_path / "thesis.txt").write_text("mine")
        run = Run.open(tmp_path, {"lr": 9}, model="gans", fresh=True)
        assert (tmp_path / "checkpoint_000001.pt").exists()
        run.start()
        assert not (tmp_path / "checkpoint_000001.pt").exists()
        assert (tmp_path / "thesis.txt").exists()

    def test_temporary_files_of_a_killed_process_are_cleared(self, tmp_path):
        run = open_run(tmp_path)
        (tmp_path / f".checkpoint_000001.{files.HOST}-999999999.pt").write_bytes(b"half")
        run.start()
        assert [p.name for p in tmp_path.iterdir()] == ["config.json"]

    def test_fresh_deletes_nothing_in_a_folder_that_is_no_run(self, tmp_path):
        (tmp_path / "samples.npz").write_bytes(b"x")
        Run.open(tmp_path, {"lr": 9}, model="gans", fresh=True).start()
        assert (tmp_path / "samples.npz").exists()

    def test_resumed_progress_continues_from_the_checkpoint(self, tmp_path):
        run = open_run(tmp_path)
        for step in range(1, 6):
            run.log_row(step, step * 4, step * 0.5, loss=1 / step)
        with open(tmp_path / "progress.csv", "a") as file:
            file.write("6,24,")
        run.start(3)
        run.log_row(4, 16, 9.0, loss=0.5, fd=2.0)
        rows = read_progress(tmp_path / "progress.csv")
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert rows[-1] == {"step": 4, "images_seen": 16, "wall_seconds": 9.0, "loss": 0.5, "fd": 2.0}

    @pytest.mark.parametrize("fresh", [False, True])
    def test_folder_of_checkpoints_without_their_run_is_refused_and_kept(self, fresh, tmp_path):
        (tmp_path / "model000006.pt").write_bytes(b"mine")
        with pytest.raises(UserError, match=r"holds checkpoints but no config\.json"):
            open_run(tmp_path, fresh=fresh)
        assert (tmp_path / "model000006.pt").read_bytes() == b"mine"


class TestLock:
    HOLD = (
        "import os, sys, time; from pathlib import Path; from comparison.runs import Run; "
        "Run.open(Path(sys.argv[1]), {'lr': 1}, model='gans').start(); "
        "os.fork() or print(os.getpid(), flush=True); time.sleep(60)"  # the child prints when it has started
    )

    def test_a_folder_in_which_another_process_trains_is_refused_until_that_is_killed(self, tmp_path):
        folder = tmp_path / "run"
        command = [sys.executable, "-c", self.HOLD, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            child = int(holder.stdout.readline())
            try:
                for fresh in (False, True):
                    with pytest.raises(UserError, match="another process is training"):
                        Run.open(folder, {"lr": 1}, model="gans", fresh=fresh)
                holder.kill()
                holder.wait()
                Run.open(folder, {"lr": 1}, model="gans").start()  # though the child is still there
            finally:
                holder.kill()
                os.kill(child, signal.SIGKILL)

    def test_one_process_trains_in_a_folder_again_and_leaves_it_when_it_has_finished(self, tmp_path):
        run = Run.open(tmp_path, {"lr": 1}, model="gans")
        run.start()
        Run.open(tmp_path, {"lr": 1}, model="gans").start()
        look = "import sys; from pathlib import Path; from comparison.runs import Run; "
        look += "Run.open(Path(sys.argv[1]), {'lr': 1}, model='gans')"
        command = [sys.executable, "-c", look, str(tmp_path)]
        assert subprocess.run(command, capture_output=True).returncode == 1
        run.finish("max_steps 1", steps=1, images_seen=1, wall_seconds=1.0)
        assert subprocess.run(command, capture_output=True).returncode == 0


class TestCheckpoints:
    def test_damaged_foreign_and_missing_files_are_one_sentence(self, tmp_path):
        path = tmp_path / "checkpoint_000010.pt"
        save_checkpoint(path, {"weights": torch.ones(1000)}, model="gans")
        assert torch.equal(load_checkpoint(path, model="gans")["weights"], torch.ones(1000))
        with pytest.raises(UserError, match="a checkpoint of gans, not of ddgan"):
            load_checkpoint(path, model="ddgan")
        with pytest.raises(UserError, match="no such checkpoint"):
            load_checkpoint(tmp_path / "none.pt", model="gans")
        path.write_bytes(path.read_bytes()[:900])
        with pytest.raises(UserError, match="perhaps truncated"):
            load_checkpoint(path, model="gans")


class TestRandomness:
    def test_rows_are_a_slice_of_the_global_draw(self):
        assert torch.equal(rng.normal((8, 2), 0, rows=slice(4, 8)), rng.normal((8, 2), 0)[4:])

    def test_an_image_has_its_noise_whatever_the_batch_size(self):
        whole = rng.SampleNoise(0, range(50), "cpu").normal((3,), 1)
        for size in (1, 7, 16, 32):
            parts = [rng.SampleNoise(0, range(i, min(i + size, 50)), "cpu").normal((3,), 1) for i in range(0, 50, size)]
            assert torch.equal(torch.cat(parts), whole)

    def test_sample_noise_is_standard_normal_and_differs_between_images(self):
        noise = rng.SampleNoise(0, range(1000), "cpu").normal((50,), 0)
        assert abs(noise.mean()) < 0.02
        assert noise.std() == pytest.approx(1, abs=0.02)
        assert len(noise[:, 0].unique()) == 1000


class TestSampling:
    network = torch.nn.Identity()

    def draw(self, indices):
        noise = rng.SampleNoise(0, indices, "cpu").normal((3, 8, 8), 0)
        return self.network(self.network(noise)).clamp(-1, 1)

    def sample(self, out, draw=None, batch_size=4, **facts):
        options = {"batch_size": batch_size, "image_size": 8, "device": torch.device("cpu")}
        facts = {"sampler": "none", **facts}
        return draw_samples(draw or self.draw, [self.network], num_samples=10, out=out, facts=facts, **options)

    def test_exact_number_files_and_evaluations(self, tmp_path):
        self.sample(tmp_path / "samples.npz")
        assert np.load(tmp_path / "samples.npz")["arr_0"].shape == (10, 8, 8, 3)
        record = read_json(tmp_path / "sampling.json")
        assert record["nfe"] == 2
        assert record["images"] == 10
        assert sorted(p.name for p in tmp_path.iterdir()) == ["samples.npz", "samples.png", "sampling.json"]

    def test_killed_drawing_continues_without_loss_or_repetition(self, tmp_path):
        self.sample(tmp_path / "a.npz")
        drawn = []

        def killed(indices):
            if len(drawn) == 3:  # the warm-up and two batches
                raise KeyboardInterrupt
            drawn.append(indices)
            return self.draw(indices)

        with pytest.raises(KeyboardInterrupt):
            self.sample(tmp_path / "b.npz", killed)
        again = []
        self.sample(tmp_path / "b.npz", lambda indices: (again.append(indices), self.draw(indices))[1])
        assert again == [range(8, 10), range(8, 10)]
        assert np.array_equal(np.load(tmp_path / "a.npz")["arr_0"], np.load(tmp_path / "b.npz")["arr_0"])

    def test_finished_drawing_costs_nothing_and_other_facts_draw_anew(self, tmp_path):
        self.sample(tmp_path / "a.npz", step=1)
        self.sample(tmp_path / "a.npz", draw=None, step=1)
        with pytest.raises(ZeroDivisionError):
            self.sample(tmp_path / "a.npz", draw=lambda indices: 1 / 0, step=2)

    def test_diverged_network_is_told_apart(self, tmp_path):
        with pytest.raises(UserError, match="not finite"):
            self.sample(tmp_path / "a.npz", lambda i: torch.full((len(i), 3, 8, 8), torch.nan))


class TestCommandLine:
    @pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("0", False), ("yes", True)])
    def test_published_booleans_mean_what_they_say(self, text, value):
        assert cli.str2bool(text) is value

    @pytest.mark.parametrize("words", ["--lr -1", "--lr nan", "--lr fast", "--l 1", "--batch 3"])
    def test_wrong_flags_are_one_line_and_status_two(self, words, capsys):
        parser = cli.make_parser("Do a thing.")
        parser.add_argument("--lr", type=cli.positive_float, default=1.0, help="rate")
        with pytest.raises(SystemExit) as error:
            parser.parse_args(words.split())
        assert error.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize(
        ("action", "message"),
        [
            ("raise cli.UserError('the thing is wrong')", "the thing is wrong"),
            ("open('/no/such/file')", "/no/such/file: No such file or directory"),
        ],
    )
    def test_user_and_file_errors_exit_with_status_two_and_one_line(self, action, message):
        code = f"from comparison import cli\ndef main(): {action}\ncli.run(main)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, f"-c: error: {message}\n")

    def test_closed_streams_are_the_null_device(self, tmp_path):
        code = "from comparison import cli\nimport sys\ndef main():\n    print('out')\n"
        code += "    print('err', file=sys.stderr)\n    open('data', 'w').write('x')\ncli.run(main)"
        command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} <&- >&- 2>&-"
        assert subprocess.run(command, shell=True, cwd=tmp_path).returncode == 0
        assert (tmp_path / "data").read_text() == "x"


def test_unknown_device_is_refused():
    with pytest.raises(UserError, match="--device quantum"):
        pick_device("quantum")
