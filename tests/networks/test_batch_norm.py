"""Batch norm: conditional against its formula, statistics averaged over ranks, standing statistics over batches."""

from pathlib import Path

import torch
from torch import nn

from aigc.networks.batch_norm import ConditionalBatchNorm, share_statistics, standing_statistics


def test_conditional_batch_norm_is_normalised_then_scaled_and_shifted_by_the_vector():
    norm = ConditionalBatchNorm(3, 2)
    x, vector = torch.randn(16, 3, 4, 4), torch.randn(16, 2)
    gain, bias = norm.modulate(vector).chunk(2, dim=1)
    centred = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x, vector), centred * (1 + gain[..., None, None]) + bias[..., None, None])
    plain = ConditionalBatchNorm(3, 0)
    assert len(list(plain.parameters())) == 2
    torch.testing.assert_close(plain(x, None), centred)


def test_standing_statistics_average_over_batches_and_leave_the_network_alone():
    network = nn.Sequential(nn.BatchNorm2d(2)).eval()
    batches = [(torch.randn(8, 2, 3, 3) * k + k,) for k in (1, 2, 3)]
    standing = standing_statistics(network, batches)
    torch.testing.assert_close(standing[0].running_mean, torch.stack([x.mean((0, 2, 3)) for (x,) in batches]).mean(0))
    torch.testing.assert_close(standing[0].running_var, torch.stack([x.var((0, 2, 3)) for (x,) in batches]).mean(0))
    assert not standing.training
    assert network[0].running_mean.tolist() == [0, 0]


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(3))
    for norm in (network[0], network[2]):
        norm.running_mean.fill_(rank + 1)
        norm.running_var.fill_(4 * rank)
    share_statistics(network)
    torch.save([norm.state_dict() for norm in (network[0], network[2])], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_share_their_statistics(tmp_path: Path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        for state in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            assert set(state["running_mean"].tolist()) == {1.5}
            assert set(state["running_var"].tolist()) == {2.0}


def test_one_process_has_nothing_to_share():
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(3)
    share_statistics(norm)
    assert norm.running_mean.tolist() == [3, 3]
