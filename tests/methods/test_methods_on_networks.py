"""Every method with every network: a training step, whole images by sliding windows, and the exported graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from hydra import compose, initialize_config_dir

from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.schema import check_configuration, configuration_folder, resolved
from edue_lightning.data import RaterBatch
from edue_lightning.errors import UserError
from edue_lightning.exporting.graph import TOLERANCE
from edue_lightning.exporting.run import export
from edue_lightning.methods import SegmentationMethod
from edue_lightning.runs.checkpoints import checkpoint_entries, load_method, save_method
from edue_lightning.training.run import TrainConfiguration

TINY = {
    "dynunet": ["network.features=[4,6,8]"],
    "segresnet": ["network.features=8", "network.blocks_down=[1,1,1]", "network.blocks_up=[1,1]"],
    "swin_unetr": ["network.features=12", "network.window=2", "network.depths=[1,1,1,1]"],
    "attention_unet": ["network.features=[4,6,8]"],
    "any": [
        "network.network._target_=monai.networks.nets.BasicUNet",
        "+network.network.features=[4,4,8,8,8,4]",
        "network.decoder='upcat_[1-4]'",
        "network.encoder='conv_0|down_[1-4]'",
        "network.multiple=16",
    ],
}
METHODS = ["edue", "layer_ensemble", "deep_ensemble"]
FORMATS = {2: ImageFormat(2, 3, ("disc", "cup")), 3: ImageFormat(3, 2, ("node",))}
SIZES = {2: (40, 72), 3: (16, 24, 40)}


def configuration_of(network: str, method: str, dims: int, *others: str) -> dict[str, Any]:
    experiment = {2: "synthetic", 3: "synthetic_petct"}[dims]
    overrides = [f"experiment={experiment}", f"network={network}", f"method={method}", *TINY[network], *others]
    if method == "deep_ensemble":
        overrides.append("method.members=2")
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        configuration = resolved(compose("train", overrides=overrides))
    check_configuration(configuration, TrainConfiguration)
    return configuration


def batch_of(dims: int) -> RaterBatch:
    kind = FORMATS[dims]
    masks = torch.rand(2, 3, len(kind.structures), *SIZES[dims]) < 0.3
    return RaterBatch(
        torch.randn(2, kind.channels, *SIZES[dims]),
        masks,
        torch.ones(2, 3, dtype=torch.bool),
        torch.ones(2, dims),
        torch.arange(2),
        torch.arange(2),
    )


def trained_one_step(method: SegmentationMethod, batch: RaterBatch) -> None:
    for one in method.trainees():
        optimizer = torch.optim.SGD(one.parameters(), lr=1e-3)
        loss = one.training_loss(batch)["loss"]
        assert torch.isfinite(loss)
        loss.backward()
        assert all(parameter.grad is not None for parameter in one.parameters())
        optimizer.step()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", list(TINY))
def test_every_method_trains_and_predicts_on_every_network(network: str, method: str, dims: int) -> None:
    window = [32, 64] if dims == 2 else [16, 16, 64]
    torch.manual_seed(0)
    configuration = configuration_of(network, method, dims, "inference=default", f"inference.window={window}")
    made = build_method(configuration, FORMATS[dims])
    batch = batch_of(dims)
    trained_one_step(made, batch)
    with torch.inference_mode():
        logits = made.eval().predict(batch.image)
    assert logits.shape[2:] == (len(FORMATS[dims].structures), *batch.image.shape[2:])
    assert torch.isfinite(logits).all()


def test_layer_ensembles_need_stages() -> None:
    overrides = ["network.decoder=null", "network.encoder=null"]
    with pytest.raises(UserError, match=r"heads on the encoder's stages need.*BasicUNet has none"):
        build_method(configuration_of("any", "layer_ensemble", 2, *overrides), FORMATS[2])


_MINUTES = pytest.mark.exhaustive


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "dims"),
    [
        ("dynunet", 2),
        ("segresnet", 3),
        pytest.param("swin_unetr", 2, marks=_MINUTES),
        pytest.param("attention_unet", 2, marks=_MINUTES),
        pytest.param("any", 3, marks=_MINUTES),
    ],
)
def test_every_network_is_exported(network: str, dims: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if network == "any":
        monkeypatch.setenv("EDUE_TRUSTED_PACKAGES", "monai")
    configuration = configuration_of(network, "edue", dims)
    torch.manual_seed(0)
    method = build_method(configuration, FORMATS[dims])
    checkpoint, output = tmp_path / "best.ckpt", tmp_path / "model.onnx"
    save_method(method, checkpoint, checkpoint_entries(configuration, FORMATS[dims]))
    apart = export({"ckpt": str(checkpoint), "format": "onnx", "output": str(output), "overwrite": False})
    assert apart < TOLERANCE
    # a further size, beside those that the export itself compares
    loaded = load_method(checkpoint).method
    edge = 4 * max(16, loaded.network.stride) if dims == 2 else 2 * loaded.network.stride
    image = torch.randn(2, FORMATS[dims].channels, *[edge] * (dims - 1), 2 * edge)
    with torch.inference_mode():
        expected = torch.sigmoid(loaded(image)).mean(dim=1)
    found = onnxruntime.InferenceSession(output).run(["probability"], {"image": image.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=TOLERANCE, rtol=0, check_dtype=False)
