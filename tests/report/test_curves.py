import base64

import numpy as np

from aigc.report.curves import packed, thinned
from aigc.report.thumbnails import spread


def unpack(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_curves_are_grouped_by_their_points_and_carry_every_axis():
    history = [
        {"step": 1, "images": 64, "seconds": 6.0, "loss": 1.0, "rate": 0.1},
        {"step": 2, "images": 128, "seconds": 12.0, "loss": 0.5, "rate": 0.1, "penalty": 7.0},
        {"step": 2, "images": 128, "seconds": 12.0, "fd": 3.0, "note": "words"},
        {"step": 3, "images": 192, "seconds": 18.0, "loss": float("nan"), "rate": None},
    ]
    groups = packed(history, 100)
    curves = {name: (group["x"], unpack(y)) for group in groups for name, y in group["y"].items()}
    assert set(curves) == {"loss", "rate", "penalty", "fd"}
    x, loss = curves["loss"]
    assert unpack(x["images"]).tolist() == [64, 128, 192] and unpack(x["minutes"]).tolist() == [
        np.float32(0.1), np.float32(0.2), np.float32(0.3)]
    assert loss[:2].tolist() == [1.0, 0.5] and np.isnan(loss[2])
    assert unpack(curves["penalty"][0]["steps"]).tolist() == [2] and curves["fd"][1].tolist() == [3.0]
    assert "images" not in packed([{"step": 1, "loss": 1.0}], 100)[0]["x"]


def test_thinning_keeps_ends_and_every_peak():
    values = np.stack([np.sin(np.arange(5000) / 300), np.zeros(5000)], axis=1)
    values[3210, 0], values[77, 1] = 9.0, -5.0
    rows, thin = thinned(values, 200)
    assert len(rows) == len(thin) == 200 and rows[0] == 0 and rows[-1] == 4999 and (np.diff(rows) > 0).all()
    assert thin[:, 0].max() == 9.0 and thin[:, 1].min() == -5.0
    assert abs(np.interp(1000, rows, thin[:, 0]) - values[1000, 0]) < 0.2
    rows, thin = thinned(values[:150], 200)
    assert rows.tolist() == list(range(150)) and (thin == values[:150]).all()


def test_grids_are_spread_over_training_with_the_last():
    found = dict.fromkeys(range(0, 1000, 100), None)
    assert list(spread(found, 4)) == [0, 300, 600, 900] and list(spread(found, 1)) == [900]
    assert list(spread(found, 50)) == list(found)
