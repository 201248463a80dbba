"""Minimax's fine-tuning: what it trains, its terms against plain loops, and scales that fold into the weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from rd3.datasets import Roots, open_dataset
from rd3.diffusion.derivation import derivation_of
from rd3.diffusion.derivations.minimax import MinimaxFineTuning, MinimaxTuning
from rd3.diffusion.families.dit import DiT
from rd3.diffusion.minimax import FineTuning, Memories, insert_scales, merge_scales, trained_parameters
from rd3.errors import BadValue
from rd3.recipe import Data, DerivedRecipe

LAYERS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.2")


def test_it_trains_what_was_published_by_exact_names(dit: DiT):
    insert_scales(dit.transformer)
    own = {
        name.replace("parametrizations.", "").replace(".original", "") for name in trained_parameters(dit.transformer)
    }
    embedders = "transformer_blocks.0.norm1.emb"
    expected = {
        "pos_embed.proj.bias", "proj_out_1.bias", "proj_out_2.bias",
        f"{embedders}.timestep_embedder.linear_1.bias", f"{embedders}.timestep_embedder.linear_2.bias",
        f"{embedders}.class_embedder.embedding_table.weight",
    }  # fmt: skip
    for block in range(4):
        for layer in (*LAYERS, "norm1.linear", "ff.net.0.proj"):
            expected.add(f"transformer_blocks.{block}.{layer}.bias")
    for block in range(2):  # the first half
        for layer in LAYERS:
            expected.add(f"transformer_blocks.{block}.{layer}.weight.0.gamma")
        expected.add(f"transformer_blocks.{block}.attn1.to_out.0.weight.1.gamma")  # of the residual
    assert own == expected


def test_scales_of_1_change_nothing_and_others_fold_into_the_weights(dit: DiT):
    plain, scaled = dit.transformer, copy.deepcopy(dit.transformer)
    insert_scales(scaled)
    x, t, y = torch.randn(2, 3, 32, 32), torch.tensor([10, 900]), torch.tensor([0, 10])

    def output(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model(x, timestep=t, class_labels=y).sample

    assert torch.equal(output(plain), output(scaled))
    with torch.no_grad():
        for name, value in scaled.named_parameters():
            if name.endswith("gamma"):
                value.uniform_(0.5, 1.5)
    moved = output(scaled)
    assert not torch.allclose(moved, output(plain), atol=1e-3)
    merge_scales(scaled)
    assert {name: value.shape for name, value in scaled.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }
    assert torch.allclose(output(scaled), moved, atol=1e-6)


def test_a_scale_multiplies_the_outputs_of_its_layer(dit: DiT):
    scaled = copy.deepcopy(dit.transformer)
    insert_scales(scaled)
    first, plain = scaled.transformer_blocks[0], dit.transformer.transformer_blocks[0]
    factors = torch.linspace(0.1, 2, 16)
    with torch.no_grad():
        first.attn1.to_q.parametrizations.weight[0].gamma.copy_(factors)
        first.attn1.to_out[0].parametrizations.weight[0].gamma.copy_(factors)
        first.attn1.to_out[0].parametrizations.weight[1].gamma.copy_(factors)
        x = torch.randn(3, 16)
        assert torch.allclose(first.attn1.to_q(x), factors * plain.attn1.to_q(x), atol=1e-6)
        assert torch.allclose(first.attn1.to_out[0](x), factors**2 * plain.attn1.to_out[0](x), atol=1e-6)


def plain_terms(predicted, labels, real, earlier):
    """The two terms as in the paper, pair by pair."""
    pull = push = 0.0
    for label in set(labels):
        if not earlier.get(label):
            continue
        own = [one for one, at in zip(predicted, labels, strict=True) if at == label]
        cosine = lambda a, b: float(F.cosine_similarity(a, b, dim=0))  # noqa: E731
        pull += 1 - min(cosine(a, b) for a in own for b in real[label])
        push += max(cosine(a, b) for a in own for b in earlier[label])
    return pull / len(set(labels)), push / len(set(labels))


def test_its_terms_are_those_of_a_plain_loop_over_queues():
    memories, stream = Memories(size=3), torch.Generator().manual_seed(0)
    real: dict[int, list[torch.Tensor]] = {}
    earlier: dict[int, list[torch.Tensor]] = {}
    for batch in ([0, 1, 1, 4], [1, 0, 0, 0], [4, 1, 1, 2], [2, 2, 2, 2]):
        latents, predicted = (torch.randn(4, 12, generator=stream) for _ in range(2))
        found = [float(term) for term in memories.terms(predicted, batch)]
        assert found == pytest.approx(plain_terms(predicted, batch, real, earlier), abs=1e-5)
        memories.add(latents, predicted, batch)
        for label, one, other in zip(batch, latents, predicted, strict=True):
            real[label], earlier[label] = [*real.get(label, []), one][-3:], [*earlier.get(label, []), other][-3:]


def test_gradients_flow_to_one_pair_of_each_term():
    memories = Memories(size=8)
    memories.add(torch.randn(4, 5), torch.randn(4, 5), [0, 0, 0, 0])
    predicted = torch.randn(3, 5, requires_grad=True)
    pull, push = memories.terms(predicted, [0, 0, 0])
    for term in (pull, push):
        [gradient] = torch.autograd.grad(term, predicted, retain_graph=True)
        assert int(gradient.any(dim=1).sum()) == 1


@pytest.fixture
def recipe(info, tmp_path) -> DerivedRecipe:
    digits = open_dataset("digits", Roots(None, tmp_path))
    return DerivedRecipe(
        data=Data(name="digits", fingerprint=digits.fingerprint), classes=info.classes, resolution=32,
        step="minimax", version=1, settings={}, backbone="0" * 64,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"warmth": 1}, "warmth: Extra inputs"), ({"lr": math.inf}, "lr: Input should be a finite number")],
)
def test_settings_of_another_release_and_infinite_ones_are_refused(recipe: DerivedRecipe, settings, message: str):
    with pytest.raises(BadValue, match=f"other settings than derivation minimax takes: {message}"):
        derivation_of(recipe.model_copy(update={"settings": settings}))


def test_a_derivation_writes_what_changed_and_no_more(dit: DiT, recipe: DerivedRecipe, tmp_path):
    from safetensors.torch import load_file

    digits = open_dataset("digits", Roots(None, tmp_path))
    before = copy.deepcopy(dit.transformer.state_dict())
    settings = MinimaxTuning(epochs=1, batch_size=500, ema=0.0)
    notes: list[str] = []
    result = MinimaxFineTuning().derive(
        recipe, settings, dit, digits, tmp_path, lambda fraction, note: notes.append(note)
    )
    tuned = FineTuning(copy.deepcopy(dit), settings, recipe, digits).parameters.values()
    assert result["trained_values"] == sum(value.numel() for value in tuned)
    stored = load_file(tmp_path / "changed.safetensors")
    assert "transformer_blocks.3.attn1.to_q.weight" not in stored, "no scale in the second half"
    assert {"transformer_blocks.1.attn1.to_q.weight", "transformer_blocks.3.attn1.to_q.bias"} <= set(stored)
    after = dit.transformer.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], stored.get(name, value)), name
    assert notes == [f"epoch 1/1, loss {result['final_loss']:.4f}, 0 s left"]
    assert not dit.transformer.training and not any(value.requires_grad for value in dit.transformer.parameters())


class Cut(Exception):
    """The fine-tuning is interrupted here."""


def test_an_interrupted_fine_tuning_is_taken_up_to_the_bit(dit: DiT, recipe: DerivedRecipe, tmp_path):
    """Cut after the second of three epochs; the memories hold fewer latents than an epoch has."""
    digits = open_dataset("digits", Roots(None, tmp_path))
    settings = MinimaxTuning(epochs=3, batch_size=300, memory=20)

    def cut(fraction: float, _note: str) -> None:
        if fraction > 0.5:
            raise Cut

    found = {}
    for name, attempts in (("straight", [lambda fraction, note: None]), ("cut", [cut, lambda fraction, note: None])):
        (tmp_path / name).mkdir()
        for progress in attempts:
            try:
                model = copy.deepcopy(dit)
                found[name] = MinimaxFineTuning().derive(recipe, settings, model, digits, tmp_path / name, progress)
            except Cut:
                assert (tmp_path / name / "checkpoint.safetensors").is_file()
    assert found["cut"]["final_loss"] == found["straight"]["final_loss"]
    assert found["cut"]["wall_s"] > 0
    files = [(tmp_path / name / "changed.safetensors").read_bytes() for name in ("straight", "cut")]
    assert files[0] == files[1]
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["changed.safetensors"]


def test_without_steps_the_average_is_the_model_itself(dit: DiT, recipe: DerivedRecipe, tmp_path):
    digits = open_dataset("digits", Roots(None, tmp_path))
    tuning = FineTuning(dit, MinimaxTuning(), recipe, digits)
    before = [value.detach().clone() for value in tuning.parameters.values()]
    tuning.finish()
    assert all(map(torch.equal, before, tuning.average))
