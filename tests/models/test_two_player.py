"""The step of two players: who learns in whose turn, several backward passes and turns in a step, lazy penalties."""

import lightning as L
import pytest
import torch
from torch import nn

from aigc.models.two_player import TwoPlayer


class Rivals(TwoPlayer):
    """A discriminator with a frozen part, `per_step` turns of it in a step from `start` on, in `chunks` chunks."""

    def __init__(self, generator_rate=0.1, discriminator_rate=0.2, betas=(0.0, 0.9), *, chunks=1, per_step=1, start=0,
                 **clip):
        super().__init__()
        self.save_hyperparameters({"generator_rate": generator_rate, "discriminator_rate": discriminator_rate,
                                   "betas": list(betas), **clip})
        torch.manual_seed(0)
        self.judge, self.maker = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), nn.Linear(2, 2)
        self.judge[0].requires_grad_(False)
        self.chunks, self.per_step, self.start, self.seen = chunks, per_step, start, []

    def players(self):
        return {"discriminator": [self.judge], "generator": [self.maker]}

    def training_step(self, batch, batch_idx):
        for _ in range(self.per_step if self.progress.batches >= self.start else 0):
            with self.turn("discriminator") as backward:
                for part in batch.chunk(self.chunks):
                    backward(-self.judge(part).mean() / self.chunks)
        with self.turn("generator") as backward:
            self.seen.append([p.requires_grad for p in self.parameters()])
            backward(self.judge(self.maker(batch)).square().mean())
        self.progress.batches += 1
        return {}


def trained(model, steps=1):
    torch.manual_seed(1)
    data = torch.utils.data.DataLoader([torch.randn(8, 2) for _ in range(steps)], batch_size=None)
    L.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
              enable_model_summary=False).fit(model, data)
    return model


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_optimizers_are_those_of_the_players_in_their_order():
    first, second = Rivals().configure_optimizers()
    assert (first.defaults["lr"], second.defaults["lr"]) == (0.2, 0.1)
    assert [len(o.param_groups[0]["params"]) for o in (first, second)] == [4, 2]
    assert first.defaults["betas"] == (0.0, 0.9) and first.defaults["fused"] and first.defaults["foreach"] is None
    clipped = Rivals(clip=1.0).configure_optimizers()[0].defaults
    assert clipped["foreach"] and not clipped["fused"]


def test_judges_do_not_learn_in_a_generators_turn_and_frozen_parts_stay_frozen():
    model = Rivals()
    before = {name: p.clone() for name, p in model.named_parameters()}
    trained(model)
    assert model.seen == [[False] * 4 + [True] * 2]
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, True, True]
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert moved == ["judge.1.weight", "judge.1.bias", "maker.weight", "maker.bias"]


def test_a_turn_that_fails_takes_no_step_and_hands_the_judges_back():
    class Failing(Rivals):
        def training_step(self, batch, batch_idx):
            before = weights(self)
            with pytest.raises(ValueError, match="no loss"), self.turn("generator") as backward:
                backward(self.judge(self.maker(batch)).mean())
                raise ValueError("no loss")
            assert torch.equal(weights(self), before)
            self.done = [p.requires_grad for p in self.judge[1].parameters()]

    assert trained(Failing()).done == [True, True]


def test_gradients_of_one_turn_add_up():
    torch.testing.assert_close(weights(trained(Rivals(chunks=4), 3)), weights(trained(Rivals(), 3)))


def test_a_player_may_have_several_turns_or_start_late():
    once, thrice, late = (trained(Rivals(**how), 4) for how in ({}, {"per_step": 3}, {"start": 3}))
    steps = [int(model.optimizers()[0].optimizer.state[model.judge[1].bias]["step"]) for model in (once, thrice, late)]
    assert steps == [4, 12, 1]


def test_lazy_penalties_weigh_as_much_over_all():
    model, found = Rivals(), []
    for step in range(9):
        model.progress.batches = step
        found.append(model.lazily(4))
    assert found == [4, 0, 0, 0, 4, 0, 0, 0, 4]
