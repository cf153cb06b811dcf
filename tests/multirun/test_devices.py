import pytest

from aigc.errors import UserError
from aigc.multirun import devices
from aigc.multirun.devices import Devices, need_of


def trainer(count, accelerator="auto"):
    return {"devices": count, "accelerator": accelerator}


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "gpus", lambda: ("3", "5", "6", "7"))


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "gpus", lambda: ())


def test_every_gpu_has_one_job_and_threads_are_shared_out(four_gpus):
    machine = Devices(cores=16)
    given = [machine.take(number, trainer(1), jobs=9) for number in range(5)]
    assert [one and one["CUDA_VISIBLE_DEVICES"] for one in given] == ["3", "5", "6", "7", None]
    assert given[0]["OMP_NUM_THREADS"] == "4" and machine.full
    machine.give_back(2)
    assert not machine.full and machine.take(5, trainer(1), jobs=9)["CUDA_VISIBLE_DEVICES"] == "6"


def test_jobs_of_two_devices_take_two_gpus_and_wait_for_them(four_gpus):
    machine = Devices(cores=16)
    assert machine.take(0, trainer(2), jobs=3) == {"CUDA_VISIBLE_DEVICES": "3,5", "OMP_NUM_THREADS": "4"}
    assert machine.take(1, trainer(1), jobs=3)["CUDA_VISIBLE_DEVICES"] == "6"
    assert machine.take(2, trainer(2), jobs=3) is None
    machine.give_back(1)
    assert machine.take(2, trainer(2), jobs=3)["CUDA_VISIBLE_DEVICES"] == "6,7"


def test_gpus_that_a_job_names_itself_are_kept_for_it(four_gpus):
    machine = Devices(cores=16)
    assert machine.take(0, trainer([1, 2]), jobs=3) == {"OMP_NUM_THREADS": "8"}
    assert machine.take(1, trainer("1,3"), jobs=3) is None
    assert machine.take(2, trainer(2), jobs=3)["CUDA_VISIBLE_DEVICES"] == "3,7"


def test_more_jobs_than_gpus_share_them_when_asked_to(four_gpus):
    machine = Devices(6, cores=16)
    given = [machine.take(number, trainer(1), jobs=9) for number in range(7)]
    assert [one and one["CUDA_VISIBLE_DEVICES"] for one in given] == ["3", "5", "6", "7", "3", "5", None]


def test_more_gpus_than_there_are_is_refused(four_gpus):
    with pytest.raises(UserError, match=r"trainer\.devices=8, but this machine has 4 GPUs"):
        need_of(trainer(8))
    assert need_of(trainer("auto")).processes == 4
    assert need_of(trainer(8, "cpu")) == devices.Need(8)
    with pytest.raises(UserError, match=r"trainer\.devices=many is unknown"):
        need_of(trainer("many"))


@pytest.mark.parametrize("count", [None, 2.5, 0, -2, "0", " ", True, [], ["a"], "1:3"])
def test_a_number_of_devices_that_is_none_is_refused(count, no_gpu):
    with pytest.raises(UserError, match=r"trainer\.devices=.* is unknown: give a number, a list of indices, or auto"):
        need_of(trainer(count))


@pytest.mark.parametrize("parallel", [0, -1, 1.5, "two", True])
def test_a_number_of_jobs_at_once_that_is_none_is_refused(parallel):
    with pytest.raises(UserError, match=f"max_parallel must be a whole number of at least 1 or null, not {parallel}"):
        Devices(parallel)


def test_on_a_cpu_jobs_come_one_after_the_other_unless_asked(no_gpu):
    machine = Devices(cores=8)
    assert machine.take(0, trainer(1), jobs=4) == {} and machine.full
    assert machine.take(1, trainer(1), jobs=4) is None
    assert Devices(cores=8).take(0, trainer(2), jobs=4) == {"OMP_NUM_THREADS": "4"}
    machine = Devices(3, cores=8)
    given = [machine.take(number, trainer(1), jobs=9) for number in range(4)]
    assert given == [{"OMP_NUM_THREADS": "2"}] * 3 + [None]
    assert Devices(3, cores=8).take(0, trainer(1), jobs=2) == {"OMP_NUM_THREADS": "4"}  # only two will ever run


def test_threads_that_the_user_chose_stay(no_gpu, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert Devices(2, cores=8).take(0, trainer(1), jobs=2) == {}
