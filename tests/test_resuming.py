"""From which file a run goes on, what is said of the others, and what run.json says from then on."""

import platform
import shutil
from importlib import metadata

import pytest
import torch
from omegaconf import OmegaConf

import runner
from runner.errors import InputError
from runner.job.launch import launch
from runner.job.recovery import FileFacts, recover
from runner.job.resuming import KEPT, resume
from runner.job.run import train
from runner.storage import checkpoint
from runner.storage.run_dir import RunDir
from runner.train.events import Progress

WORDS = ["dataset=fake", "dataset.train_size=60", "dataset.eval_size=20", "dataset.val_size=20", "model=mlp"]
WORDS += ["model.hidden=[8]", "dataset.input_shape=[1,6,6]", "device.threads=1", "quiet=true", "trainer.epochs=3"]
CONFIG = {"trainer": {"log_every": None}, "derived": {"batches_per_epoch": 9}}
RECORD = {
    "id": "mine",
    "config": CONFIG,
    "config_yaml": "trainer: {log_every: null}\nderived: {batches_per_epoch: 9}\n",
    "monitor": "loss",
    "mode": "min",
}


RECORD |= {"known_steps": {}}


@pytest.fixture
def place(tmp_path):
    made = RunDir(tmp_path / "run")
    made.checkpoints.mkdir(parents=True)
    return made


def saved(place, name, epoch, batch=0, best_epoch=1, holds_best=False, **more):
    """A checkpoint of a run whose loss is 0.5 in its best epoch and 0.6 in the others."""
    rows = [{"epoch": e, "step": 9 * e, "loss": 0.5 if e == best_epoch else 0.6} for e in range(1, epoch + 1)]
    best_value = None if best_epoch is None else 0.5
    progress = {
        "epoch": epoch,
        "batch": batch,
        "step": 9 * epoch + batch,
        "best_epoch": best_epoch,
        "best_value": best_value,
        "best_step": None if best_epoch is None else 9 * best_epoch,
        "evaluated": 9 * epoch,
    }
    state = {"format_version": 1, "model_state_dict": {"w": torch.zeros(1000)}, "optimizer_state_dict": {}, "lr": 1.0}
    state |= {"scheduler_state_dict": {}, "metrics": {}, "progress": progress, "running": {}, "rng": {}, "rows": rows}
    state |= {"run_id": "mine", "config": RECORD["config_yaml"], **more}
    if holds_best:
        state["best_model_state_dict"] = {}
    checkpoint.save(place.checkpoints / f"{name}.pt", state)
    if len(rows) > len(place.metrics.read()):
        place.metrics.replace(rows)
    return place.checkpoints / f"{name}.pt"


def spoil(path, at=0.5):
    """Damages a tensor: what only the digest sees."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


def test_without_any_checkpoint_a_run_begins_anew(place):
    (place.checkpoints / "model.pt").touch()
    (place.checkpoints / "model_state_dict.pt").touch()
    resumed = recover(place, RECORD)
    notes = resumed.notes
    assert (resumed.state, resumed.path, resumed.best, resumed.unusable, resumed.rows) == (None, None, None, [], [])
    assert resumed.known == {} and notes == []


def test_the_newest_is_taken_whatever_it_is_called(place):
    saved(place, "last", 2, best_epoch=2), saved(place, "last-1", 1)
    path = saved(place, "epoch_0003", 3, best_epoch=2)
    best = saved(place, "best", 2, best_epoch=2)
    resumed = recover(place, RECORD)
    notes = resumed.notes
    assert (resumed.path, resumed.best, resumed.unusable, notes) == (path, best, [], [])
    assert resumed.state["progress"]["epoch"] == 3 and resumed.rows == place.metrics.read()
    assert resumed.known == {9: 0.6, 18: 0.5, 27: 0.6}
    inside = saved(place, "last", 3, batch=1, best_epoch=2)
    assert recover(place, RECORD).path == inside


def test_of_two_files_of_one_moment_last_is_taken(place):
    for name in ("epoch_0001", "zlast", "best", "last", "last-1"):
        saved(place, name, 1)
    resumed = recover(place, RECORD)
    assert resumed.path.name == "last.pt" and resumed.best.name == "best.pt"


def test_a_file_that_holds_the_best_weights_itself_needs_no_other(place):
    path = saved(place, "last", 3, best_epoch=1, holds_best=True)
    resumed = recover(place, RECORD)
    notes = resumed.notes
    assert (resumed.path, resumed.best, notes) == (path, None, [])
    assert FileFacts.of(checkpoint.load(path)) == FileFacts(Progress(3, 27, 0, 1, 0.5, 9, 27), holds_best=True)
    assert not FileFacts.of(checkpoint.load(saved(place, "last", 3))).holds_best
    path = saved(place, "last", 3, best_epoch=None)  # the metric was NaN in every epoch
    assert (recover(place, RECORD).path, recover(place, RECORD).best) == (path, None)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"PK"), spoil])
def test_a_damaged_newest_file_is_said_and_set_aside_and_its_epochs_are_repeated(place, damage):
    best, before = saved(place, "best", 1), saved(place, "last-1", 2)
    path = saved(place, "last", 4)
    damage(path)
    resumed = recover(place, RECORD)
    first, *rest = resumed.notes
    assert (resumed.path, resumed.best, resumed.unusable) == (before, best, [path])
    assert first.startswith(f"{path}: ") and rest == ["continuing from last-1.pt, after epoch 2: 2 epochs are repeated"]
    assert [row["epoch"] for row in resumed.rows] == [1, 2] and set(resumed.known) == {9, 18, 27, 36}


def test_damaged_best_weights_are_taken_from_another_file_that_holds_them(place):
    path, best, other = saved(place, "last", 2), saved(place, "best", 1), saved(place, "epoch_0001", 1)
    spoil(best)
    resumed = recover(place, RECORD)
    notes = resumed.notes
    assert (resumed.path, resumed.best, resumed.unusable) == (path, other, [best])
    assert notes[0].startswith(f"{best}: damaged") and notes[1].endswith(
        "continuing from last.pt, after epoch 2: 0 epochs are repeated"
    )


def test_where_the_best_weights_are_lost_the_run_begins_anew_and_its_checkpoints_are_set_aside(place):
    path = saved(place, "last", 3)
    resumed = recover(place, RECORD)
    notes = resumed.notes
    assert (resumed.state, resumed.unusable, resumed.known) == (None, [path], {9: 0.5, 18: 0.6, 27: 0.6})
    assert notes == [
        "the weights of the best epoch are lost, so the run starts again from its beginning: 3 epochs are repeated"
    ]
    spoil(path)
    with pytest.raises(InputError) as refused:
        recover(place, RECORD)
    assert str(refused.value).startswith(f"{place.path}: none of its checkpoints is good; {path}: damaged")


def test_an_epoch_that_is_known_to_be_better_makes_up_for_lost_weights(place):
    path = saved(place, "last", 2)
    assert recover(place, {**RECORD, "known_steps": {"27": 0.4}}).path == path  # it was completed once, and cut off
    assert recover(place, {**RECORD, "known_steps": {"27": 0.5}}).path is None
    assert recover(place, {**RECORD, "known_steps": {"18": 0.1}}).path is None
    assert recover(place, {**RECORD, "known_steps": {"27": 0.4}}).path == path
    with pytest.raises(InputError, match="run.json: known_steps: 'x' is no number of a step"):
        recover(place, {**RECORD, "known_steps": {"x": 0.1}})
    assert recover(place, {**RECORD, "known_steps": {"27": 0.5}, "mode": "max"}).path is None
    resumed = recover(place, {**RECORD, "known_steps": {"27": 0.6, "36": None, "9": 9.0}, "mode": "max"})
    assert resumed.path == path and resumed.known == {9: 0.5, 18: 0.6, 27: 0.6, 36: None}  # rows are newer than known


def test_a_file_of_another_run_or_without_a_key_is_left_out_by_name(place):
    good = saved(place, "best", 1)
    other = saved(place, "last", 3, run_id="another")
    without = saved(place, "last-1", 2, lr=0)
    state = checkpoint.load(without)
    del state["lr"]
    checkpoint.save(without, state)
    resumed = recover(place, RECORD)
    notes = resumed.notes
    assert resumed.path == good and set(resumed.unusable) == {other, without}
    assert f"{without}: has no lr" in notes and any("belongs to another run (its id is another" in n for n in notes)


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of three epochs, and the same stopped in the second batch of its third."""
    folder = tmp_path_factory.mktemp("made")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(folder)  # as the tests do: in no repository
    runner.run(WORDS, run_dir=folder / "whole")

    def stop(progress, batches):
        if (progress.epoch, progress.batch) == (2, 2):
            raise RuntimeError("out of power")

    def trained(*job):
        return train(*job, on_batch=stop)

    with pytest.raises(RuntimeError, match="out of power"):
        launch(WORDS, trained, run_dir=str(folder / "stopped"))
    monkeypatch.undo()
    return folder


@pytest.fixture
def runs(made, tmp_path):
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def test_from_its_first_batch_on_a_resumed_run_says_what_was_done_before(runs):
    whole, seen = RunDir(runs / "whole").read_run(), []
    place = RunDir(runs / "stopped")
    before = place.read_run()

    def look(progress, batches):
        if not seen:
            seen.append(place.read_run())

    after = resume(place.path, ["name=again"], on_batch=look, is_shown=False)
    (first,) = seen
    rows = place.metrics.read()
    assert first["state"] == "running" and first["name"] == "again"
    assert {key: first.get(key) for key in KEPT} == {key: before.get(key) for key in KEPT}
    assert first["epochs_done"] == 2 and [row["epoch"] for row in rows] == [1, 2, 3]
    values = {row["epoch"]: row[before["monitor"]] for row in rows[:2]}
    steps = [row["step"] for row in rows[:2]]
    best = max(values, key=lambda epoch: (values[epoch], -epoch))
    assert (first["best_epoch"], first["best_value"]) == (best, values[best])
    assert first["known_steps"] == {str(step): value for step, value in zip(steps, values.values(), strict=True)}
    assert first["seconds"] == before["seconds"] >= sum(row["seconds"] for row in rows[:2]) - 0.01
    for which, epoch in (("best", best), ("last", 2)):
        row = rows[epoch - 1]
        assert first[which] == {key: row[key] for key in row if key == "lr" or "/" in key}
    (event,) = first["resumed"]
    assert (event["epoch"], event["batch"], event["changes"]) == (2, 0, []) and event["code"] == first["code"]
    assert event["command"] == first["command"] or isinstance(event["command"], list)
    same = ("epochs_done", "best_epoch", "best_value", "best", "last", "test", "state")
    assert {key: after[key] for key in same if key != "seconds"} == {key: whole[key] for key in same}


def test_a_resumption_of_a_resumption_keeps_the_first(runs):
    resume(runs / "whole", ["trainer.epochs=4"])
    again = resume(runs / "whole", ["trainer.epochs=5"])
    assert [event["epoch"] for event in again["resumed"]] == [3, 4] and again["epochs_done"] == 5
    path = runs / "whole"
    record = RunDir(path).read_run()
    RunDir(path).write_run({**record, "replay_of": "x"})
    assert resume(path, ["trainer.epochs=6"])["replay_of"] == "x"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["optimizer_state_dict"].clear(), "has no 'param_groups'"),
        (lambda s: s["model_state_dict"].popitem(), "does not fit its config; Error"),
        (lambda s: s["progress"].update(odd=1), "does not fit its config; "),
    ],
)
def test_a_state_that_does_not_fit_is_named_and_changes_nothing(runs, change, said):
    place = RunDir(runs / "stopped")
    for path in place.checkpoints.glob("*.pt"):
        state = checkpoint.load(path)
        change(state)
        checkpoint.save(path, state)
    before = place.metrics.path.read_bytes(), {p.name for p in place.checkpoints.iterdir()}
    with pytest.raises(InputError) as refused:
        resume(place.path, [])
    assert str(refused.value).startswith(f"{place.checkpoints / 'last.pt'}: {said}")
    assert (place.metrics.path.read_bytes(), {p.name for p in place.checkpoints.iterdir()}) == before


def test_what_is_set_aside_is_kept_under_its_name_and_not_looked_at_again(runs):
    place = RunDir(runs / "stopped")
    last = place.checkpoints / "last.pt"
    spoil(last)
    content = last.read_bytes()
    resume(place.path, [])
    (kept,) = [path for path in place.checkpoints.iterdir() if "set-aside" in path.name]
    assert kept.name.startswith("last.pt.set-aside-") and kept.read_bytes() == content
    log = place.log.read_text()
    assert ".pt, after epoch 1: 1 epochs are repeated" in log
    assert "[INFO] resumed after 1 epoch and 0 batches\n" in log


def test_a_finished_run_takes_other_words_and_says_what_is_useless(runs, capsys):
    path = runs / "whole"
    finished = f"{path}: finished, all 3 epochs are done"
    before = RunDir(path).run_json.read_bytes()
    assert resume(path, [])["state"] == "done"
    assert capsys.readouterr().out == f"{finished}\n" and RunDir(path).run_json.read_bytes() == before
    resume(path, ["quiet=false"])
    assert capsys.readouterr().out == f"{finished}\n" and RunDir(path).run_json.read_bytes() == before
    resume(path, ["trainer.log_every=7", "checkpoint.keep=3"])
    said = capsys.readouterr().out
    assert said == f"{finished}; nothing is left to be done with checkpoint.keep, trainer.log_every\n"
    assert RunDir(path).run_json.read_bytes() == before
    record = resume(path, ["tags=[x]", "notes=b", "name=a", "checkpoint.keep=3"])
    assert capsys.readouterr().out == (
        f'{finished}; name="a", tags=["x"], notes="b" written to run.json;'
        " nothing is left to be done with checkpoint.keep\n"
    )
    kept = RunDir(path).read_run()
    for where in (record, kept, kept["config"], OmegaConf.create(kept["config_yaml"])):
        assert (where["name"], where["tags"], where["notes"]) == ("a", ["x"], "b")
    assert kept["config"]["checkpoint"]["keep"] == 2 and "keep: 2" in kept["config_yaml"]


def test_what_a_strangers_record_would_look_up_stays_closed_and_ones_own_goes_on(runs):
    place = RunDir(runs / "whole")
    record = place.read_run()
    asking = "${oc.env:HOME}"
    record["config"]["notes"] = asking
    record["config_yaml"] = record["config_yaml"].replace("notes: null", f"notes: {asking}")
    place.write_run(record)
    with pytest.raises(InputError, match="notes=.*: is not looked up"):
        resume(place.path, ["tags=[y]"])


def test_a_run_that_never_began_or_is_busy_is_refused_and_can_be_taken_afterwards(runs):
    place = RunDir(runs / "whole")
    record = place.read_run()
    place.lock()
    with pytest.raises(InputError, match="this process is already running it"):
        resume(place.path, ["trainer.epochs=4"])
    place.release()
    with pytest.raises(InputError, match=r"seed: 1 -> 2 would change"):
        resume(place.path, ["seed=2"])
    place.lock()  # it was given back
    place.release()
    place.write_run({**record, "config_yaml": None, "error": "odd", "state": "failed"})
    with pytest.raises(InputError) as refused:
        resume(place.path, [])
    assert str(refused.value) == f"{place.path}: never began (odd); start its sweep again, once that is mended"


def test_a_lost_best_file_is_made_again_from_another_that_holds_its_weights(runs, tmp_path):
    words = [*WORDS, "checkpoint.every=1", "optimizer.lr=0.0"]  # every epoch is as good: the first is the best
    runner.run(words, run_dir=tmp_path / "run")
    place = RunDir(tmp_path / "run")
    before = checkpoint.load(place.checkpoints / "best.pt")
    (place.checkpoints / "best.pt").unlink()
    record = resume(place.path, ["trainer.epochs=4"])
    after = checkpoint.load(place.checkpoints / "best.pt")
    assert record["best_epoch"] == before["epoch"] == after["epoch"] == 1
    assert after["config_digest"] == before["config_digest"]
    last = checkpoint.load(place.checkpoints / "last.pt")
    assert (last["run_id"], last["config_digest"]) == (before["run_id"], before["config_digest"])


def test_best_weights_that_have_no_file_from_now_on_are_kept_beside_the_last(tmp_path):
    runner.run([*WORDS, "optimizer.lr=0.0"], run_dir=tmp_path / "run")
    place = RunDir(tmp_path / "run")
    best = checkpoint.load(place.checkpoints / "best.pt")
    record = resume(place.path, ["trainer.epochs=4", "checkpoint.save=last"])
    state = checkpoint.load(place.checkpoints / "last.pt")
    assert record["best_epoch"] == best["epoch"] == 1 and state["epoch"] == 4
    assert all(torch.equal(v, best["model_state_dict"][k]) for k, v in state["best_model_state_dict"].items())
    assert set(record["test"]) == {"best", "last"}
    again = resume(place.path, ["trainer.epochs=5"])  # and are taken out of it again
    state = checkpoint.load(place.checkpoints / "last.pt")
    assert all(torch.equal(v, best["model_state_dict"][k]) for k, v in state["best_model_state_dict"].items())
    assert again["best_epoch"] == 1 and again["test"]["best"] == record["test"]["best"]


def test_another_device_or_thread_count_is_said_and_the_same_is_not(runs):
    place = RunDir(runs / "stopped")
    resume(place.path, [])
    assert "another device" not in place.log.read_text()
    said = "another device, thread count or placement (cpu, {}; before: {}): from here on the last digits may differ"
    resume(place.path, ["trainer.epochs=4", "device.threads=2"])
    assert place.log.read_text().count("[WARNING] " + said.format("2 threads", "cpu, 1 threads") + "\n") == 1
    place.write_run({**place.read_run(), "device": "cuda:0", "placement": "workers"})
    resume(place.path, ["trainer.epochs=5", "device.threads=2"])
    assert (
        place.log.read_text().count("[WARNING] " + said.format("2 threads", "cuda:0, 2 threads, workers") + "\n") == 1
    )


def test_surroundings_that_have_changed_are_said_and_kept_with_the_resumption(runs):
    place = RunDir(runs / "stopped")
    record = place.read_run()
    code = {**record["code"], "commit": "another"}
    place.write_run({**record, "python": "3.0", "packages": {**record["packages"], "torch": "1.0"}, "code": code})
    (event,) = resume(place.path, [])["resumed"]
    now_is = place.read_run()
    assert now_is["python"] == "3.0" and now_is["code"] == code  # of the beginning
    assert event["changes"] == [
        f"python: 3.0 -> {platform.python_version()}",
        f"torch: 1.0 -> {metadata.version('torch')}",
        f"commit: another -> {event['code']['commit']}",
    ]
    said = f"[WARNING] not all is as it was when this run began: {'; '.join(event['changes'])}; its figures may differ"
    assert place.log.read_text().count(said) == 1


def test_what_is_known_of_epochs_is_written_before_their_rows_are_cut_off(runs, monkeypatch):
    place = RunDir(runs / "stopped")
    spoil(place.checkpoints / "last.pt")
    rows = place.metrics.read()
    place.write_run({**place.read_run(), "known_steps": {}})

    def crash(self, *arguments):
        raise RuntimeError("the power is gone")

    monkeypatch.setattr("runner.storage.rows.Rows.cut_back", crash)
    monkeypatch.setattr("runner.storage.rows.Rows.replace", crash)
    with pytest.raises(RuntimeError, match="power"):
        resume(place.path, [])
    assert list(place.read_run()["known_steps"]) == [str(row["step"]) for row in rows] and len(rows) > 1
