"""The Inception path against torch-fidelity itself, with random weights in a local file."""

import socket

import numpy as np
import pytest
import torch
from torch import nn

from aigc.errors import UserError
from aigc.scoring.networks.inception import InceptionV3
from aigc.scoring.scores.frechet import frechet_distance
from aigc.scoring.scores.inception_score import InceptionScore
from aigc.scoring.suite import Suite

N = 16      # on each side: a forward pass is 5.7 billion multiplications


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights that keep the scale of the signal, in torch-fidelity's layout."""
    from torch_fidelity import feature_extractor_inceptionv3 as source

    path = tmp_path_factory.mktemp("weights") / "random.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(source, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(source.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = source.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def network(weights):
    return InceptionV3(weights)


@pytest.fixture(scope="module")
def images():
    """Two sets of uint8 RGB images, 24 x 20, the second smoother and darker."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 256, (N, 3, 24, 20), generator=generator).to(torch.uint8)
    second = nn.functional.avg_pool2d(torch.rand(N, 3, 26, 22, generator=generator), 3, 1) * 200
    return first, second.to(torch.uint8)


@pytest.mark.slow
def test_fid_kid_and_is_agree_with_torch_fidelity(weights, network, images):
    """To 1e-3: features differ by float32's rounding (normalisation is folded in, layouts differ), and distances are
    small differences of large sums. That subsets and splits are the same is tested in test_suite.py.
    """
    import torch_fidelity

    class Images(torch.utils.data.Dataset):
        def __init__(self, pixels):
            self.pixels = pixels

        def __len__(self):
            return len(self.pixels)

        def __getitem__(self, k):
            return self.pixels[k]

    fake, real = images
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(fake), input2=Images(real), fid=True, kid=True, kid_subset_size=N, kid_subsets=1, batch_size=N,
        isc=True, isc_splits=1, feature_extractor_weights_path=str(weights), cuda=False, cache=False, verbose=False,
        save_cpu_ram=True,
    )
    suite = Suite(network, kd_subset_size=N, kd_subsets=1)
    suite.add_real(network(real)[0])
    ours = suite.compute(*network(fake))
    assert ours["fd_inception"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["kd_inception"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    score = InceptionScore(N, splits=1)
    score.update(network(fake)[1])
    assert score.compute() == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert ours["fd_inception"] > 1e-3 and ours["kd_inception"] > 1e-4  # numbers, not rounding


def test_features_are_torch_fidelitys_own(weights, network, images):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(weights))
    for ours, expected in zip(network(images[0][:2]), theirs(images[0][:2]), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*disp.*:DeprecationWarning", "ignore:Matrix is singular")
def test_pytorch_fids_protocol_gives_its_features_and_its_distance(weights, images, tmp_path, monkeypatch):
    """Features to 1e-4, for float32's rounding; the distance to 1e-6, of as many features as so few images determine.

    pytorch-fid's half-pixel grid and scale are preprocessing=pytorch_fid.
    """
    from PIL import Image

    fid_score = pytest.importorskip("pytorch_fid.fid_score", reason="pytorch-fid is not installed")
    inception = pytest.importorskip("pytorch_fid.inception")
    state = torch.load(weights, weights_only=True)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: state)
    theirs = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    network = InceptionV3(weights, preprocessing="pytorch_fid")
    sides = []
    for name, pixels in zip(("fake", "real"), images, strict=True):
        files = [tmp_path / f"{name}{k:02}.png" for k in range(N)]
        for file, image in zip(files, pixels, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
        expected = fid_score.get_activations(files, theirs, N, 2048, "cpu", num_workers=0)
        sides.append(network(pixels)[0])
        np.testing.assert_allclose(sides[-1], expected, rtol=1e-4, atol=1e-5 * expected.max())
    few = [side[:, ::500].double() for side in sides]           # 5 of 2048
    moments = [moment for side in few for moment in (side.mean(0), side.T.cov())]
    distance = fid_score.calculate_frechet_distance(*(moment.numpy() for moment in moments))
    assert frechet_distance(*moments).item() == pytest.approx(distance, rel=1e-6) and distance > 1e-6
    assert "pytorch-fid" in network.facts()["resizer"]
    with pytest.raises(UserError, match="did you mean 'pytorch_fid'"):
        InceptionV3(weights, preprocessing="pytorch-fid")


def test_grey_is_shown_as_rgb_and_other_channels_are_refused(network, images):
    grey = images[0][:2, :1]
    features, logits = network(grey)
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    assert torch.equal(features, network(grey.repeat(1, 3, 1, 1))[0])
    with pytest.raises(UserError, match=r"not 2 channels.*metrics=classifier"):
        network(images[0][:2, :2])


def test_only_the_published_weights_are_called_fid(weights, network, monkeypatch):
    assert network.score_names() == {"fd": "fd_inception", "kd": "kd_inception", "is": "is_inception"}
    monkeypatch.setattr("aigc.scoring.networks.inception.PUBLISHED_SHA256", network.sha256)
    assert InceptionV3(weights).score_names() == {"fd": "fid", "kd": "kid", "is": "is"}
    assert network.train().training is False and not any(p.requires_grad for p in network.parameters())


def test_missing_and_wrong_files_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        InceptionV3(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("text.pth", "other.pth"):
        with pytest.raises(UserError, match=r"does not hold Inception-v3's weights.*torch-fidelity"):
            InceptionV3(tmp_path / name)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="does not hold"):
        InceptionV3(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_no_network_is_one_sentence(tmp_path, monkeypatch):
    def nowhere(*args, **kwargs):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(socket, "create_connection", nowhere)
    with pytest.raises(UserError, match=r"cannot download Inception-v3's weights.*metrics.weights=<file>"):
        InceptionV3()
