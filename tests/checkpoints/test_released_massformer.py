"""The converted network against what the released one computes, and the table of names in both directions."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.checkpoints import load
from src.checkpoints.architecture import massformer_overrides
from src.checkpoints.names import NameTableError, check_fits, translate
from src.checkpoints.released_massformer import RELEASED_MASSFORMER
from src.data.targets import boundary_map
from src.inference import semantic_scores
from src.losses.criterion import SetCriterion
from src.losses.matcher import HungarianMatcher
from src.losses.points import BoundaryPoints
from src.models.transformer_decoder.masked_attention import MaskedAttentionDecoder
from src.structures import Targets

CONVERTER = Path(__file__).parents[2] / "scripts" / "convert_checkpoint.py"

# ten times the error of float32 against float64 that comes with the reference values
MASK_FEATURES, CLASS_LOGITS, MASK_LOGITS, SCORES = 3e-6, 1.3e-5, 4e-5, 1.7e-4
SCORE_ERROR = 1.7e-5
FLOATS = {
    "feat0_sample": MASK_FEATURES,
    "feat3_sample": MASK_FEATURES,
    "mask_features": MASK_FEATURES,
    "edge_logits": MASK_FEATURES,
    "mem0": MASK_FEATURES,
    "mem1": MASK_FEATURES,
    "mem2": MASK_FEATURES,
    "cls_logits": CLASS_LOGITS,
    "cls_logits_all": CLASS_LOGITS,
    "mask_logits": MASK_LOGITS,
    "aux_mask_logits": MASK_LOGITS,
    "sem_prob": SCORES,
}


@pytest.fixture(scope="module")
def network(released_state, golden, tmp_path_factory):
    """What ``load`` makes of a file as mmengine writes it, after the converter's command line."""
    folder = tmp_path_factory.mktemp("released")
    state = dict(released_state)
    for name in ("mask_embed.4", "cls_embed"):
        state[f"decode_head.{name}.weight"] = state[f"decode_head.{name}.weight"] * 6
        state[f"decode_head.{name}.bias"] = golden[f"set_{name.replace('.', '_')}_bias"]
    content = {"meta": {"iter": 80000}, "state_dict": state, "optimizer": {"param_groups": []}}
    torch.save(content, folder / "iter_80000.pth")
    command = [sys.executable, str(CONVERTER), "--from", "massformer-release", "iter_80000.pth", "out.ckpt"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "660 tensors" in done.stdout
    return load(folder / "out.ckpt")


@pytest.fixture(scope="module")
def attended():
    """The attention masks of ``answers``, in the order in which they were made."""
    return []


@pytest.fixture(scope="module")
def answers(network, golden_images, attended):
    """Everything that the reference values hold, from our network, cut as they are.

    In float64, so that what differs is the network and not the order in which a processor's kernels add up: in
    float32 the class logits of the first layer, which see no image, move by 9e-6 from one instruction set to another.
    """
    made = MaskedAttentionDecoder._attention_mask

    def remember(self, *arguments):
        attended.append(made(self, *arguments))
        return attended[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskedAttentionDecoder, "_attention_mask", remember)
        return answer(copy.deepcopy(network).double(), golden_images.double())


def answer(network, golden_images):
    with torch.no_grad():
        features = network.backbone(golden_images)
        pixels = network.pixel_decoder(golden_images, features)
        layers = network.transformer_decoder(pixels)
        prediction = network(golden_images)
    scores = semantic_scores(prediction, (256, 256))[0]
    labels = scores.argmax(0)
    maps = (pixels.mask_features, prediction.edge_logits, prediction.mask_logits, scores)
    best, second = scores.topk(2, dim=0).values
    memories = {
        f"mem{i}": memory[:, ::16, :: 2 ** (i + 1), :: 2 ** (i + 1)]
        for i, memory in enumerate(pixels.memories)
    }
    return {
        "feat0_sample": features[0][:, ::32, ::16, ::16],
        "feat3_sample": features[3][:, ::64, ::2, ::2],
        "mask_features": pixels.mask_features[:, ::32, ::16, ::16],
        "edge_logits": prediction.edge_logits[:, :, ::8, ::8],
        **memories,
        "cls_logits": prediction.class_logits,
        "mask_logits": prediction.mask_logits[:, :, ::16, ::16],
        "cls_logits_all": torch.stack([layer.class_logits[:, ::10] for layer in layers]),
        "aux_mask_logits": torch.stack([layer.mask_logits[:, ::10, ::16, ::16] for layer in layers[:-1]]),
        "sem_prob": scores[:, ::8, ::8],
        "argmax": labels[::8, ::8],
        "argmax_hist": torch.bincount(labels.flatten(), minlength=7),
        "undecided": int((best - second < 2 * SCORE_ERROR).sum()),
        "means": torch.stack([torch.stack((x.double().mean(), x.double().std())) for x in maps]).flatten(),
        "input_sample": golden_images[:, :, ::16, ::16],
        "input_shape": torch.tensor(golden_images.shape),
        "mask_features_shape": torch.tensor(pixels.mask_features.shape),
        "edge_shape": torch.tensor(prediction.edge_logits.shape),
        "mask_shape": torch.tensor(prediction.mask_logits.shape),
        "sem_shape": torch.tensor(scores.shape),
    }


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        *FLOATS.items(),
        ("argmax", 0),
        ("means", MASK_LOGITS),
        ("input_sample", 1e-6),
        ("input_shape", 0),
        ("mask_features_shape", 0),
        ("edge_shape", 0),
        ("mask_shape", 0),
        ("sem_shape", 0),
    ],
)
def test_answers_equal_the_released_network(answers, golden, name, tolerance):
    ours, theirs = answers[name], golden[name]
    assert ours.numel() == theirs.numel()
    difference = (ours.double() - theirs.reshape(ours.shape).double()).abs().max().item()
    print(f"{name} {tuple(ours.shape)}: largest difference {difference:.2g}, allowed {tolerance:g}")
    assert difference <= tolerance


def test_single_precision_changes_rounding_only(network, golden_images, answers, attended, monkeypatch):
    """Float32 stays within the bar too, where the same pixels are attended to.

    Attention masks cut at a logit of 0, so rounding moves the few pixels that lie within it to the other side, and
    what a query then sees is another thing: which ones depends on the processor's kernels. They are counted, and
    taken from float64 for the comparison.
    """
    flips, pixels = [], 0
    masks = iter(attended)
    rounded = MaskedAttentionDecoder._attention_mask

    def same_pixels(self, *arguments):
        nonlocal pixels
        exact = next(masks)
        flips.append(int((rounded(self, *arguments) != exact).sum()))
        pixels += exact.numel()
        return exact.float()

    monkeypatch.setattr(MaskedAttentionDecoder, "_attention_mask", same_pixels)
    single = answer(network, golden_images)
    assert next(masks, None) is None
    print(f"attended pixels that rounding moves, by layer: {flips} of {pixels}")
    assert sum(flips) < 1e-4 * pixels
    for name, limit in FLOATS.items():
        difference = (single[name].double() - answers[name].double()).abs().max().item()
        print(f"{name}: largest difference {difference:.2g}, allowed {limit:g}")
        assert difference <= limit


def test_label_counts_equal_the_released_network(answers, golden):
    """Pixels whose best two scores are closer than twice the stated error may go either way."""
    moved = int((answers["argmax_hist"] - golden["argmax_hist"]).abs().sum()) // 2
    print(f"argmax_hist: {moved} of 65536 pixels moved, {answers['undecided']} are undecided")
    assert moved <= answers["undecided"] < 100


def test_every_reference_array_is_compared(answers, golden):
    inputs = {"input_lowres", "set_mask_embed_4_bias", "set_cls_embed_bias"}
    assert set(golden) - set(answers) - inputs == {"argmax_margin_q"}  # how narrowly the released labels won


def test_masks_at_memory_size_give_the_same_answer(network, golden_images, answers):
    fast = copy.deepcopy(network).double()
    fast.transformer_decoder.masks_at_memory_size = True
    with torch.no_grad():
        prediction = fast(golden_images.double())
    torch.testing.assert_close(prediction.class_logits, answers["cls_logits"], atol=CLASS_LOGITS, rtol=0)


def test_loss_terms_equal_the_released_head(released_network, golden_images, reference):
    expected = json.loads((reference / "golden_loss.json").read_text())
    label = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).repeat_interleave(64).expand(1, 256, 256)
    boundaries = torch.from_numpy(boundary_map(label[0].numpy()))[None]
    criterion = SetCriterion(7, HungarianMatcher(), BoundaryPoints())
    with torch.no_grad():
        prediction = released_network.predict_layers(golden_images)
        runs = []
        for seed in range(6):
            torch.manual_seed(seed)
            runs.append(criterion(prediction, Targets(label, boundaries)))
    for name, mean in expected["mean"].items():
        ours = sum(float(run[name.replace("_cls", "_class")]) for run in runs) / len(runs)
        deviation = expected["std"][name]
        print(f"{name}: {ours:.4f}, released {mean:.4f} +- {deviation:.4f}")
        # without randomness in a term only rounding is left
        assert abs(ours - mean) <= max(4 * deviation, 1e-4), name
    edge_term = float(runs[0]["loss_edge"])
    print(f"loss_edge: {edge_term:.6f}, true target {expected['edge_true_target']:.6f}")
    assert edge_term == pytest.approx(expected["edge_true_target"], rel=1e-4)


def test_round_trip_keeps_every_tensor(released_state, released_network):
    ours = translate(released_state, RELEASED_MASSFORMER)
    check_fits(ours, released_network.state_dict(), "released")
    back = translate(ours, RELEASED_MASSFORMER, reverse=True)
    assert len(back) == 660
    assert list(back) == list(released_state)
    assert all(back[name] is tensor for name, tensor in released_state.items())


@pytest.mark.parametrize("number", [0, 100, 300, 400, 659])
def test_a_missing_and_an_unknown_name_raise(released_state, released_network, number):
    name = list(released_state)[number]
    state = dict(released_state)
    tensor = state.pop(name)
    ours = next(iter(translate({name: tensor}, RELEASED_MASSFORMER)))
    with pytest.raises(NameTableError, match=f"(?s)1 tensors are missing: {ours}"):
        check_fits(translate(state, RELEASED_MASSFORMER), released_network.state_dict(), "a file")
    with pytest.raises(NameTableError, match=r"1 tensors have no place .*decode_head\.unheard_of"):
        translate({**released_state, "decode_head.unheard_of": tensor}, RELEASED_MASSFORMER)


def test_overrides_need_the_deciding_tensors(released_state):
    ours = translate(released_state, RELEASED_MASSFORMER)
    del ours["transformer_decoder.query_features.weight"]
    with pytest.raises(NameTableError, match=r"query_features\.weight is missing"):
        massformer_overrides(ours)
