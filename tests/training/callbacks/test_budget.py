"""Which signals end a run: those that its process was not started to ignore."""

import signal
from types import SimpleNamespace

import pytest

from aigc.runs.progress import Progress
from aigc.training.callbacks.budget import Budget


def test_a_run_that_was_started_to_ignore_ctrl_c_still_takes_sigterm(capsys):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell script starts `command &`
    budget, family = Budget(), SimpleNamespace(progress=Progress())
    trainer = SimpleNamespace(world_size=1, should_stop=False)
    try:
        budget.setup(trainer, family, "fit")
        budget.on_train_start(trainer, family)
        family.progress.start()
        signal.raise_signal(signal.SIGINT)
        budget.on_train_batch_end(trainer, family, None, None, 0)
        assert (trainer.should_stop, family.progress.interrupted) == (False, None)
        signal.raise_signal(signal.SIGTERM)
        budget.on_train_batch_end(trainer, family, None, None, 1)
        assert (trainer.should_stop, family.progress.interrupted) == (True, "SIGTERM")
        budget.on_train_end(trainer, family)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "\nSIGTERM: stopping after this step and saving; once more to stop at once\n"
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
