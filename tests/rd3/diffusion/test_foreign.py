"""Import of published models: folders as diffusers writes them, and what is wrong with other ones."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from huggingface_hub.utils import close_session

from rd3.datasets import Dataset, DatasetInfo, Roots, open_dataset
from rd3.diffusion.backbone import BackboneManifest, content_digest, open_backbone
from rd3.diffusion.families.dit import DiT
from rd3.diffusion.foreign import import_backbone
from rd3.errors import BadValue, DataCorrupt, DataMissing

CARD = "---\nlicense: cc-by-nc-4.0\ntags: [dit]\n---\n# A model\n"


@pytest.fixture
def digits(tmp_path: Path) -> Dataset:
    return open_dataset("digits", Roots(None, tmp_path / "home"))


def published(folder: Path, classes: int = 10, latents: int = 4, in_channels: int = 4) -> Path:
    """A pipeline with the components of DiT-XL/2, tiny."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=in_channels, out_channels=2 * in_channels,
        num_layers=2, sample_size=16, patch_size=2, num_embeds_ada_norm=classes, norm_type="ada_norm_zero",
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=latents, norm_num_groups=2, sample_size=32,
    )  # fmt: skip
    scheduler = DDIMScheduler()
    DiTPipeline(transformer, vae, scheduler, id2label={0: "a"}).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


def test_a_published_folder_becomes_a_backbone(digits: Dataset, tmp_path: Path):
    source = published(tmp_path / "source")
    recipe, result = import_backbone(source, dataset=digits, family="dit", out=tmp_path / "out")
    assert recipe.imported and recipe.data.split == "unknown" and recipe.training is None
    backbone = open_backbone(tmp_path / "out", recipe, digits.info)
    assert isinstance(backbone, DiT) and backbone.shape == (4, 16, 16) and backbone.null == 10
    manifest = BackboneManifest.read(tmp_path / "out")
    assert (manifest.licence, manifest.revision) == ("cc-by-nc-4.0", None)
    assert manifest.content == result["content"] == content_digest(backbone)
    theirs = DiTTransformer2DModel.from_pretrained(source / "transformer").eval()
    x, t, y = torch.randn(1, 4, 16, 16), torch.tensor([30]), torch.tensor([4])
    with torch.no_grad():
        assert torch.equal(theirs(x, timestep=t, class_labels=y).sample, backbone.denoise(x, t, y))
        vae = AutoencoderKL.from_pretrained(source / "vae").eval()
        decoded = vae.decode(x / 0.18215).sample
        assert torch.equal(backbone.codec.decode(x), (decoded / 2 + 0.5).clamp(0, 1))
    again, _result = import_backbone(source, dataset=digits, family="dit", out=tmp_path / "again")
    assert again.key == recipe.key


def test_other_weights_have_another_key(digits: Dataset, tmp_path: Path):
    source = published(tmp_path / "source")
    first, _result = import_backbone(source, dataset=digits, family="dit", out=tmp_path / "first")
    model = DiTTransformer2DModel.from_pretrained(source / "transformer")
    with torch.no_grad():
        model.proj_out_2.bias[0] += 1e-3
    model.save_pretrained(source / "transformer")
    second, _result = import_backbone(source, dataset=digits, family="dit", out=tmp_path / "second")
    assert second.key != first.key


def test_a_model_of_imagenet_is_conditioned_on_its_rows(tmp_path: Path):
    """The ten classes of Imagenette by their place among the thousand: tench is 0, parachute 701."""
    from rd3.datasets import dataset_info

    info: DatasetInfo = dataset_info("imagenette")
    model = DiT.load(published(tmp_path, classes=1000), info)
    assert model.conditions(torch.tensor([0, 1, 9])).given.tolist() == [0, 217, 701]
    assert model.conditions(torch.tensor([3])).null.tolist() == [1000]


def refused(source: Path | str, digits: Dataset, out: Path, error: type[Exception], match: str, **options) -> None:
    with pytest.raises(error, match=match):
        import_backbone(source, dataset=digits, family="dit", out=out, **options)
    assert not (out / "backbone.json").exists()


def test_what_is_wrong_is_said(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    refused(tmp_path / "nowhere", digits, out, DataMissing, "There is no folder")
    (tmp_path / "empty" / "unet").mkdir(parents=True)
    refused(tmp_path / "empty", digits, out, DataMissing, "lacks transformer of a dit model; it has unet")
    source = published(tmp_path / "source")
    refused(source, digits, out, DataCorrupt, "expected abcdef", sha256="abcdef")
    refused(source, digits, out, BadValue, "'' is not a sha256 digest", sha256="")
    refused(source, digits, out, BadValue, "is a folder of an unknown revision, not of main", revision="main")
    refused(published(tmp_path / "seven", classes=7), digits, out, BadValue, "knows 7 classes, digits has 10")
    refused(published(tmp_path / "three", latents=3), digits, out, BadValue, "has 3 latent channels, but its")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("nobody/no-model", digits, out, DataMissing, r"nobody/no-model cannot be downloaded")
    refused("../dit", digits, out, DataMissing, "There is no folder ../dit")


def test_a_proxy_that_refuses_is_said(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Refuses(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_error(407)

        def log_message(self, *_arguments: object) -> None:
            pass

    proxy = HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    close_session()  # the hub's client reads the proxy once
    try:
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
        refused("nobody/no-model", digits, tmp_path / "out", DataMissing, r"cannot be downloaded: 407")
    finally:
        close_session()
        proxy.shutdown()
        proxy.server_close()


def test_broken_weights_are_said(digits: Dataset, tmp_path: Path):
    source, out = published(tmp_path / "source"), tmp_path / "out"
    model = DiTTransformer2DModel.from_pretrained(source / "transformer")
    with torch.no_grad():
        model.proj_out_2.bias[0] = float("nan")
    model.save_pretrained(source / "transformer")
    refused(source, digits, out, DataCorrupt, "not finite in transformer, proj_out_2.bias")
    (source / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    refused(source, digits, out, DataCorrupt, "cannot be loaded as a dit model")
