"""What a run says when it ends."""

import shlex

from aigc.report.closing import closing, meaning


def test_next_commands_work_as_pasted(tmp_path):
    folder = tmp_path / "it's (1)"
    folder.mkdir()
    summary = {"status": "finished", "images": 64, "seconds": 60.0, "prompt": "a small blue star's",
               "scores": {"last": {"attributes/seen/all": 0.98}}}
    lines = closing(folder, summary)
    assert "  attributes/seen/all          0.98      share of samples that show all their caption asks for" in lines
    generate, evaluate = lines[-2:]
    assert shlex.split(generate)[1:] == ["python", "-m", "aigc.generate", f"run={folder}", "text=a small blue star's",
                                         "n=8"]
    assert shlex.split(evaluate) == ["python", "-m", "aigc.evaluate", f"run={folder}"]
    stopped = closing(folder, {**summary, "status": "stopped"})
    assert shlex.split(stopped[-1]) == ["resume", "python", "-m", "aigc.train", f"resume={folder}"]


def test_meanings_name_the_attribute_and_leave_unknown_scores_bare():
    assert meaning("attributes/heldout/colour") == "... of these, the colour alone"
    assert meaning("final/fd_classifier").startswith("distance") and meaning("mine") == ""
