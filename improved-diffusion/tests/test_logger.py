"""The log by OpenAI's names: where it goes, what its files hold, and that it is continued."""

import csv
import json

import pytest
import torch
from improved_diffusion import logger


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    for name in ("OPENAI_LOGDIR", "OPENAI_LOG_FORMAT", "OPENAI_LOG_FORMAT_MPI"):
        monkeypatch.delenv(name, raising=False)
    yield
    logger.reset()


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_values_reach_every_file_and_the_console(tmp_path, capsys):
    logger.configure(tmp_path)
    logger.logkvs({"step": 10, "loss": 0.12345678})
    logger.logkv_mean("grad_norm", torch.tensor(1.0))
    logger.logkv_mean("grad_norm", torch.tensor(2.0))
    assert logger.getkvs()["grad_norm"] == 1.5
    logger.log("epoch", 3)
    assert logger.dumpkvs() == {"step": 10, "loss": 0.12345678, "grad_norm": 1.5}
    assert logger.getkvs() == {}
    table = ["-----------------------", "| grad_norm | 1.5     |", "| loss      | 0.12346 |", "| step      | 10      |"]
    assert (tmp_path / "log.txt").read_text().splitlines()[1:6] == ["epoch 3", *table]
    assert "epoch 3\n" + "\n".join(table) in capsys.readouterr().out
    assert rows_of(tmp_path / "progress.csv") == [{"grad_norm": "1.5", "loss": "0.12345678", "step": "10"}]
    assert json.loads((tmp_path / "progress.json").read_text()) == {"step": 10, "loss": 0.12345678, "grad_norm": 1.5}
    assert logger.get_dir() == str(tmp_path)


def test_second_log_continues_the_files_and_new_keys_give_a_column(tmp_path):
    for key in ("a", "b"):
        logger.configure(tmp_path, ["log", "csv", "json"])
        logger.log("begun")
        logger.logkvs({"step": 1, key: "x, y"})
        logger.dumpkvs()
    assert rows_of(tmp_path / "progress.csv") == [
        {"step": "1", "a": "x, y", "b": ""},
        {"step": "1", "a": "", "b": "x, y"},
    ]
    assert (tmp_path / "log.txt").read_text().count("begun") == 2
    assert len((tmp_path / "progress.json").read_text().splitlines()) == 2


def test_line_that_was_cut_short_does_not_spoil_the_next(tmp_path):
    (tmp_path / "progress.csv").write_text("loss,step\n0.5,1\n0.2")
    logger.configure(tmp_path, ["csv"])
    logger.logkvs({"step": 2, "loss": 0.25})
    logger.dumpkvs()
    assert rows_of(tmp_path / "progress.csv") == [{"loss": "0.5", "step": "1"}, {"loss": "0.25", "step": "2"}]


def test_environment_names_folder_and_formats(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_LOGDIR", str(tmp_path / "run"))
    monkeypatch.setenv("OPENAI_LOG_FORMAT", "log, json")
    logger.configure()
    logger.logkv("a", 1)
    logger.dumpkvs()
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["log.txt", "progress.json"]
    monkeypatch.setenv("OPENAI_LOG_FORMAT", "log,wandb")
    with pytest.raises(ValueError, match="must be one of stdout, log, csv, json, tensorboard, not 'wandb'"):
        logger.configure()


def test_other_processes_write_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)  # whatever ran before
    monkeypatch.setenv("PMI_RANK", "2")
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setenv("OPENAI_LOG_FORMAT", "stdout,csv")
    logger.configure(tmp_path)
    logger.log("hello")
    assert [p.name for p in tmp_path.iterdir()] == ["log-rank002.txt"]
    monkeypatch.setenv("OPENAI_LOG_FORMAT_MPI", "csv")
    logger.configure(tmp_path)
    logger.logkv("a", 1)
    logger.dumpkvs()
    assert rows_of(tmp_path / "progress-rank002.csv") == [{"a": "1"}]


def test_scoped_log_leaves_the_outer_one_as_it_was(tmp_path):
    logger.configure(tmp_path / "outer", ["log"])
    with logger.scoped_configure(tmp_path / "inner", ["log"]):
        logger.log("inside")
    logger.log("outside")
    assert (tmp_path / "inner" / "log.txt").read_text().splitlines()[1:] == ["inside"]
    assert (tmp_path / "outer" / "log.txt").read_text().splitlines()[1:] == ["outside"]


def test_tensorboard_events_hold_the_values(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger.configure(tmp_path, ["tensorboard"])
    for step in (10, 20):
        logger.logkvs({"step": step, "loss": 1.0 / step, "note": "text"})
        logger.dumpkvs()
    logger.reset()
    events = accumulator.EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("loss")] == [(10, 0.1), (20, 0.05)]
    logger.configure(tmp_path, ["tensorboard"])
    logger.drop_after(10)
    logger.logkvs({"step": 15, "loss": 7.0})
    logger.dumpkvs()
    logger.reset()
    events = accumulator.EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [10, 15]


def test_remote_folder_is_refused(monkeypatch):
    monkeypatch.setenv("OPENAI_LOGDIR", "gs://bucket/run")
    with pytest.raises(ValueError, match=r"gs://bucket/run: the log needs a local folder"):
        logger.configure(format_strs=["log"])


def test_communicator_averages_over_processes_by_their_counts(tmp_path):
    class TwoProcesses:
        """This process, and one that has seen three values of 4 and another key."""

        def Get_rank(self):
            return 0

        def allgather(self, own):
            return [own, {"loss": (12.0, 3), "lr": (0.5, 1)}]

    logger.configure(tmp_path, ["csv"], comm=TwoProcesses())
    logger.logkv_mean("loss", 0.0)
    assert logger.dumpkvs() == {"loss": 3.0, "lr": 0.5}
