"""``rd3 diffusion import|list|verify``: a published folder becomes a role that plans use; errors leave nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with the components of DiT-XL/2, tiny, of ten classes."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=16,
        patch_size=2, num_embeds_ada_norm=10, norm_type="ada_norm_zero",
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=2, sample_size=32,
    )  # fmt: skip
    DiTPipeline(transformer, vae, DDIMScheduler(), id2label={0: "a"}).save_pretrained(tmp_path / "published")
    (tmp_path / "published" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    return tmp_path / "published"


def test_an_imported_model_is_listed_verified_and_planned_with(rd3, home, published, tmp_path, monkeypatch):
    code, out, _err = rd3("diffusion", "import", published, "--dataset", "digits", "--role", "mine")
    assert code == 0
    key = re.search(r"backbone (\w{12}): [\d.]+ million parameters, role mine of digits", out)[1]
    assert "licence: cc-by-nc-4.0; revision: unknown; tensors: sha256 " in out

    [row] = json.loads(rd3("diffusion", "list", "--json")[1])
    assert (row["name"], row["dataset"], row["family"], row["made"]) == (key, "digits", "dit", "imported")
    code, out, _err = rd3("diffusion", "verify", key[:8])
    assert (code, "as recorded" in out) == (0, True)
    with monkeypatch.context() as other:
        other.setattr("rd3.diffusion.backbone.content_digest", lambda _backbone: "0" * 64)
        code, _out, err = rd3("diffusion", "verify", key[:8])
    assert (code, "do not have the digest of its manifest.\nFix: train or import it again" in err) == (2, True)

    text = "name: g\ndatasets: [digits]\nipc: [1]\nteacher: resnet18_w16\nmethods: [{minimax: {backbone: mine}}]\n"
    (tmp_path / "grid.yaml").write_text(text)
    code, out, _err = rd3("plan", tmp_path / "grid.yaml")
    assert code == 0 and re.search(r"backbone +1 +0 +0", out), "it is reused"


def test_tensors_that_changed_in_the_store_are_found(rd3, home, published):
    rd3("diffusion", "import", published, "--dataset", "digits")
    [weights] = home.rglob("transformer/*.safetensors")
    model = DiTTransformer2DModel.from_pretrained(weights.parent)
    with torch.no_grad():
        model.proj_out_2.bias[0] += 1
    weights.chmod(0o644)
    model.save_pretrained(weights.parent)
    key = json.loads(rd3("diffusion", "list", "--json")[1])[0]["name"]
    code, _out, err = rd3("diffusion", "verify", key)
    assert code != 0 and "backbone" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dataset", "digits", "--sha256", "abc"), "expected abc"),
        (("--dataset", "digits", "--revision", "main"), "is a folder of an unknown revision, not of main"),
        (("--dataset", "digits", "--family", "dti"), "did you mean 'dit'?"),
        (("--dataset", "digit"), "did you mean 'digits'?"),
        (("--dataset", "digits", "--family", "text-to-image"), "lacks unet and text_encoder and tokenizer of a"),
    ],
)
def test_mistakes_are_said_and_nothing_is_kept(rd3, home, published, words, message):
    code, _out, err = rd3("diffusion", "import", published, *words)
    assert (code, message in err) == (2, True), err
    assert json.loads(rd3("diffusion", "list", "--json")[1]) == []
