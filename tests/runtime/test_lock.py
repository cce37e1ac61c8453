"""The lock on a run's folder: one start at a time, and a dead one keeps nobody out."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from mixer.runtime import conditional, files, lock
from mixer.runtime.errors import UserError

HOLDS = """
import sys, time
from mixer.runtime import lock
with lock.held(sys.argv[1], print):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path)
    return request.getfixturevalue("bucket_here").path("run")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "_EVERY", 0.1)
    monkeypatch.setattr(lock, "_SILENCE", 1.0)
    monkeypatch.setattr(lock, "_LOOK", 0.05)


@contextlib.contextmanager
def holder(folder, seconds=60):
    """A process that holds the lock, until it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, folder, str(seconds)], stdout=subprocess.PIPE, text=True,
        cwd=pathlib.Path(__file__).parents[2],
    ) as process:  # fmt: skip
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def owner(folder):
    return json.loads(files.read_bytes(f"{folder}/{lock.FILE}"))


def write_owner(folder, **changes):
    store = conditional.ConditionalStore(folder)
    data, generation = store.read(lock.FILE)
    found = {**(json.loads(data) if data else {}), **changes}
    assert store.write(lock.FILE, json.dumps(found).encode(), generation)


def test_an_answer_that_is_lost_on_the_way_keeps_nobody_out(folder, monkeypatch):
    """The write took effect, and its repetition is refused, since the file is of another generation by then."""
    write, lost = conditional.ConditionalStore.write, iter([True])

    def write_and_lose_the_answer(self, *arguments):
        generation = write(self, *arguments)
        return b"" if next(lost, False) else generation

    monkeypatch.setattr(conditional.ConditionalStore, "write", write_and_lose_the_answer)
    with lock.held(folder, print) as check:
        time.sleep(0.3)  # signs of life
        check()
        assert owner(folder)["pid"] == os.getpid()
        assert owner(folder)["sign_of_life"] > 1
    with lock.held(folder, print):
        pass


def test_a_second_start_is_refused_at_once_and_the_first_is_not_disturbed(folder, monkeypatch):
    monkeypatch.setattr(lock, "_SILENCE", 60.0)
    with holder(folder) as process:
        before, since = owner(folder), time.monotonic()
        with pytest.raises(UserError) as caught, lock.held(folder, print):
            pass
        assert time.monotonic() - since < 1
        assert str(caught.value).startswith(f"{folder} is in use: process {process.pid} on ")
        assert "wait for its end or stop it, or give another --workdir" in str(caught.value)
        assert owner(folder)["token"] == before["token"]


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_killed_process_of_this_machine_keeps_nobody_out(folder, reaped, monkeypatch):
    monkeypatch.setattr(lock, "_SILENCE", 60.0)
    said = []
    with holder(folder) as process:
        process.send_signal(signal.SIGKILL)
        if reaped:
            process.wait()
        else:
            while lock._began(process.pid) is not None:
                time.sleep(0.01)
        since = time.monotonic()
        with lock.held(folder, said.append):
            assert owner(folder)["pid"] == os.getpid()
        assert time.monotonic() - since < 1
    assert said == []
    assert not files.exists(f"{folder}/{lock.FILE}")


def test_another_process_with_the_number_of_the_killed_one_keeps_nobody_out(folder):
    with holder(folder):
        write_owner(folder, began=owner(folder)["began"] - 1)
        with lock.held(folder, print):
            assert owner(folder)["pid"] == os.getpid()


def test_of_another_machine_the_signs_of_life_decide(folder, monkeypatch):
    """Nothing else: neither the number of the process nor any clock."""
    said = []
    write_owner(folder, machine="other", host="other", pid=1, began=1, token="theirs", sign_of_life=1)
    since = time.monotonic()
    with lock.held(folder, said.append):
        assert 1.0 < time.monotonic() - since < 3
        assert owner(folder)["pid"] == os.getpid()
    assert said == [
        f"{folder} belongs to process 1 on other: waiting for up to 1 s to see whether it still runs"
    ]  # fmt: skip

    monkeypatch.setattr(lock, "_SILENCE", 20.0)
    write_owner(folder, machine="other", host="other", pid=1, began=1, token="theirs", sign_of_life=1)
    threading.Timer(0.4, write_owner, [folder], {"sign_of_life": 2}).start()
    with pytest.raises(UserError, match="is in use: process 1 on other trains there"), lock.held(folder, said.append):
        pass
    assert owner(folder)["sign_of_life"] == 2


def test_a_process_that_would_join_others_first_looks_whether_a_run_trains_there(folder, monkeypatch):
    said = []
    lock.refuse_if_held(f"{folder}/missing", said.append)
    lock.refuse_if_held(folder, said.append)
    with holder(folder) as process:
        with pytest.raises(UserError, match=f"{folder} is in use: process {process.pid} on .* trains there; wait for"):
            lock.refuse_if_held(folder, said.append)
        process.kill()
        process.wait()
        lock.refuse_if_held(folder, said.append)
    assert said == []
    write_owner(folder, machine="other", host="other", pid=1, began=1, token="theirs", sign_of_life=1)
    lock.refuse_if_held(folder, said.append)
    assert said == [f"{folder} belongs to process 1 on other: waiting for 0 s to see whether it still runs"]
    monkeypatch.setattr(lock, "_EVERY", 10.0)
    threading.Timer(0.2, write_owner, [folder], {"sign_of_life": 2}).start()
    with pytest.raises(UserError, match="is in use: process 1 on other trains there"):
        lock.refuse_if_held(folder, said.append)


def test_an_owner_that_leaves_while_another_machine_waits_lets_it_in(folder, monkeypatch):
    monkeypatch.setattr(lock, "_SILENCE", 60.0)
    write_owner(folder, machine="other", host="other", pid=1, token="theirs")
    threading.Timer(0.3, files.delete, [f"{folder}/{lock.FILE}"]).start()
    with lock.held(folder, lambda line: None):
        assert owner(folder)["pid"] == os.getpid()


def test_the_owner_gives_signs_of_life_and_learns_that_it_was_taken_for_dead(folder):
    def checks_until(limit, check):
        while time.monotonic() < limit:
            check()
            time.sleep(0.02)

    with lock.held(folder, print) as check:
        first = owner(folder)["sign_of_life"]
        until = time.monotonic() + 10
        while owner(folder)["sign_of_life"] == first:
            assert time.monotonic() < until
        check()
        while True:  # the owner may write at the same moment
            try:
                write_owner(folder, machine="other", host="other", pid=7, token="theirs")
                break
            except AssertionError:
                continue
        with pytest.raises(UserError, match="was taken over by process 7 on other"):
            checks_until(until, check)
    assert owner(folder)["token"] == "theirs"  # it is not this process's to delete


def test_after_a_sleep_the_owner_looks_before_it_writes(folder, monkeypatch):
    """Its thread would look only after the rest of its fifteen seconds."""
    monkeypatch.setattr(lock, "_EVERY", 60.0)
    clock = [0.0]
    monkeypatch.setattr(lock, "_now", lambda: clock[0])
    with lock.held(folder, print) as check:
        clock[0] += 1.5
        check()  # nobody was there meanwhile, and it has given a sign of life
        assert owner(folder)["sign_of_life"] == 2
        write_owner(folder, machine="other", host="other", pid=7, token="theirs")
        clock[0] += 0.9
        check()
        clock[0] += 0.2
        with pytest.raises(UserError, match="was taken over by process 7 on other"):
            check()
    assert owner(folder)["token"] == "theirs"


def test_a_file_that_is_cut_off_is_the_file_of_an_unknown_owner(tmp_path):
    (tmp_path / lock.FILE).write_text('{"pid": 1')
    with lock.held(tmp_path, print):
        assert owner(tmp_path)["pid"] == os.getpid()


def test_of_several_starts_at_once_one_gets_the_folder(folder):
    """Also if all of them find the file of a dead owner."""
    with holder(folder):
        pass
    got, refused, meet = [], [], threading.Barrier(6)

    def start():
        meet.wait()
        try:
            with lock.held(folder, print):
                got.append(1)
                until = time.monotonic() + 60  # a busy machine may begin the others late
                while len(refused) < 5 and time.monotonic() < until:
                    time.sleep(0.01)
        except UserError:
            refused.append(1)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 5)


def test_a_lock_that_could_not_be_given_back_does_not_keep_out_its_own_process(tmp_path, monkeypatch):
    with lock.held(tmp_path, print):
        kept = (tmp_path / lock.FILE).read_bytes()
    (tmp_path / lock.FILE).write_bytes(kept)
    with lock.held(tmp_path, print), pytest.raises(UserError, match="is in use"), lock.held(tmp_path, print):
        pass


def test_processes_that_train_as_one_hold_it_through_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.distributed, "is_first", lambda: False)
    with lock.held(tmp_path, print) as check:
        check()
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_one_line():
    with (
        pytest.raises(UserError, match="--workdir /proc/nowhere cannot be written to"),
        lock.held("/proc/nowhere", print),
    ):
        pass
