"""The transformer decoder: what queries may see, what is predicted, and its short cuts."""

import pytest
import torch
import torch.nn.functional as F

from src.errors import UserError
from src.models.layers import resize
from src.models.position import sine_position
from src.models.transformer_decoder.masked_attention import MaskedAttentionDecoder, _WithHalf
from src.structures import PilotedQueries, PixelFeatures

WIDTH, CLASSES, QUERIES = 32, 5, 6


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    decoder = MaskedAttentionDecoder(CLASSES, WIDTH, feedforward=48, num_queries=QUERIES, num_layers=4)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return decoder.eval()


def pixels(mask_size=(32, 48), memory_sizes=((2, 3), (4, 6), (8, 12)), batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return PixelFeatures(
        torch.randn(batch, WIDTH, *mask_size, generator=generator),
        tuple(torch.randn(batch, WIDTH, *size, generator=generator) for size in memory_sizes),
    )


def attention(layer, query, key, value, allowed):
    """Multi-head attention of one image, head by head and query by query."""
    heads, size = layer.num_heads, query.shape[1] // layer.num_heads
    weights, biases = layer.projection.weight.chunk(3), layer.projection.bias.chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
    rows = []
    for i in range(len(q)):
        parts = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            seen = allowed[i].nonzero()[:, 0]
            scores = (k[seen][:, part] @ q[i, part] / size**0.5).softmax(0)
            parts.append(scores @ v[seen][:, part])
        rows.append(torch.cat(parts))
    return torch.stack(rows) @ layer.output.weight.T + layer.output.bias


def plain_decoder(decoder, features, b):
    """The whole decoder for image ``b``, as the paper describes it, masks at 1/4 of the image."""
    coarse = F.interpolate(features.mask_features[b : b + 1], scale_factor=0.5, mode="bilinear")[0]
    queries = decoder.query_features.weight
    everything = torch.ones(QUERIES, QUERIES, dtype=torch.bool)
    predictions = []
    for index, layer in enumerate(decoder.layers):
        level = index % 3
        memory = features.memories[level][b]
        height, width = memory.shape[-2:]
        normed = decoder.norm(queries)
        embeddings = decoder.mask_head(normed)
        logits = torch.einsum("qd,dhw->qhw", embeddings, coarse)
        predictions.append((decoder.class_head(normed), logits))
        small = F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)[0]
        allowed = ~(small.sigmoid() < 0.5).flatten(1)
        allowed[~allowed.any(1)] = True
        tokens = memory.flatten(1).T + decoder.level_embedding.weight[level]
        keys = tokens + sine_position(height, width, WIDTH).flatten(0, 1)
        positions = decoder.query_positions.weight
        crossed = attention(layer.cross_attention, queries + positions, keys, tokens, allowed)
        queries = layer.cross_norm(queries + crossed)
        own = attention(layer.self_attention, queries + positions, queries + positions, queries, everything)
        queries = layer.self_norm(queries + own)
        queries = layer.feedforward_norm(queries + layer.reduce(F.gelu(layer.expand(queries))))
    normed = decoder.norm(queries)
    logits = torch.einsum("qd,dhw->qhw", decoder.mask_head(normed), features.mask_features[b])
    return [*predictions, (decoder.class_head(normed), logits)]


@pytest.mark.parametrize("gradients", [False, True])  # keys are projected in another order with them
def test_equals_a_plain_computation(decoder, gradients):
    features = pixels()
    with torch.set_grad_enabled(gradients):
        layers = decoder(features)
    assert len(layers) == 5
    for b in range(2):
        for layer, (classes, masks) in zip(layers, plain_decoder(decoder, features, b), strict=True):
            torch.testing.assert_close(layer.class_logits[b], classes, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(layer.mask_logits[b], masks, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_shapes_and_scales_of_all_predictions(decoder):
    layers = decoder(pixels())
    assert all(layer.class_logits.shape == (2, QUERIES, CLASSES + 1) for layer in layers)
    assert [tuple(layer.mask_logits.shape[-2:]) for layer in layers] == [(16, 24)] * 4 + [(32, 48)]
    # mask features that are at stride 4 already are used as they are
    layers = decoder(pixels(mask_size=(16, 24)))
    assert [tuple(layer.mask_logits.shape[-2:]) for layer in layers] == [(16, 24)] * 5
    layers = decoder(pixels(mask_size=(33, 49), memory_sizes=((3, 4), (5, 7), (9, 13))))
    assert [tuple(layer.mask_logits.shape[-2:]) for layer in layers] == [(17, 25)] * 4 + [(33, 49)]


@torch.no_grad()
def test_masks_at_memory_size_give_the_same_predictions(decoder):
    features = pixels()
    released = decoder(features)
    decoder.masks_at_memory_size = True
    try:
        short = decoder(features)
    finally:
        decoder.masks_at_memory_size = False
    for a, b in zip(released, short, strict=True):
        torch.testing.assert_close(a.class_logits, b.class_logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a.mask_logits, b.mask_logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_training_and_evaluation_predict_the_same(decoder):
    features = pixels()
    evaluated = decoder(features)
    decoder.train()
    try:
        trained = decoder(features)
    finally:
        decoder.eval()
    for a, b in zip(evaluated, trained, strict=True):
        torch.testing.assert_close(a.class_logits, b.class_logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_pixels_outside_of_its_mask_do_not_reach_a_query(decoder):
    embeddings = torch.zeros(1, QUERIES, WIDTH)
    embeddings[0, :, 0] = torch.tensor([1.0, -1, 1, 1, -1, 1])
    features = torch.zeros(1, WIDTH, 4, 6)
    features[:, 0, :, :3], features[:, 0, :, 3:] = 1, -1
    attend = decoder._attention_mask(embeddings, features, (4, 6), None)[0, 0]
    assert set(attend.flatten().tolist()) == {0, -torch.inf}
    left = torch.zeros(4, 6, dtype=torch.bool)
    left[:, :3] = True
    for query in range(QUERIES):
        expected = left if embeddings[0, query, 0] > 0 else ~left
        assert torch.equal(attend[query] == 0, expected.flatten())


@torch.no_grad()
def test_a_query_with_an_empty_mask_attends_everywhere_and_zero_counts_as_inside(decoder):
    embeddings = torch.zeros(1, 3, WIDTH)
    embeddings[0, :, 0] = torch.tensor([-1.0, 0.0, 1.0])
    features = torch.zeros(1, WIDTH, 2, 2)
    features[:, 0] = torch.tensor([[1.0, 1.0], [2.0, 3.0]])
    attend = decoder._attention_mask(embeddings, features, (2, 2), None) == 0
    assert attend.all()  # negative everywhere: empty; zero: sigmoid is 0.5, which is not below; positive: all


def test_no_gradient_flows_through_the_attention_masks(decoder):
    features = pixels()
    maps = features.mask_features.requires_grad_()
    last = decoder(features)[-1]
    last.class_logits.sum().backward()
    assert maps.grad is None  # classes depend on the masks through attention alone
    decoder(features)[-1].mask_logits.sum().backward()
    assert maps.grad is not None


@torch.no_grad()
def test_half_precision_positions_and_masks_stay_finite(decoder):
    features = pixels()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layers = decoder(features)
    reference = decoder(features)
    assert layers[-1].class_logits.isfinite().all()
    torch.testing.assert_close(layers[0].class_logits.float(), reference[0].class_logits, atol=0.1, rtol=0.1)


def pilots(seed, count=4):
    generator = torch.Generator().manual_seed(seed)
    return PilotedQueries(
        torch.randn(2, count, WIDTH, generator=generator),
        torch.rand(2, count, 64, 96, generator=generator) > 0.5,
        torch.tensor([0, 0, 1, 1])[:count],
        torch.zeros(2, count, dtype=torch.int64),
        torch.zeros(2, count, dtype=torch.int64),
    )


@torch.no_grad()
def test_learned_queries_do_not_see_piloted_ones(decoder):
    features = pixels()
    first, second = decoder(features, pilots(1)), decoder(features, pilots(2))
    alone = decoder(features)
    for a, b, c in zip(first, second, alone, strict=True):
        assert torch.equal(a.class_logits[:, 4:], b.class_logits[:, 4:])
        assert torch.equal(a.mask_embeddings[:, 4:], b.mask_embeddings[:, 4:])
        assert not torch.equal(a.class_logits[:, :4], b.class_logits[:, :4])
        torch.testing.assert_close(a.class_logits[:, 4:], c.class_logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_groups_of_piloted_queries_do_not_see_each_other(decoder):
    features, piloted = pixels(), pilots(1)
    other = pilots(2)
    changed = piloted._replace(
        queries=torch.cat((piloted.queries[:, :2], other.queries[:, 2:]), 1),
        attend=torch.cat((piloted.attend[:, :2], other.attend[:, 2:]), 1),
    )
    a, b = decoder(features, piloted)[-1], decoder(features, changed)[-1]
    assert torch.equal(a.class_logits[:, :2], b.class_logits[:, :2])
    assert not torch.equal(a.class_logits[:, 2:4], b.class_logits[:, 2:4])


@torch.no_grad()
def test_mixed_precision_is_that_of_the_block(decoder):
    expected = decoder(pixels())[-1].class_logits
    with torch.autocast("cpu", torch.bfloat16):
        found = decoder(pixels())[-1].class_logits
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="activation 'silu' is unknown; choose gelu or relu"):
        MaskedAttentionDecoder(3, 32, activation="silu")


@pytest.mark.parametrize("size", [(12, 8), (9, 7)])
def test_a_map_with_its_half_has_the_gradient_of_both(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_WithHalf.apply, (x,))
    whole, half = _WithHalf.apply(x)
    assert torch.equal(whole, x)
    assert half.shape[2:] == (-(-size[0] // 2), -(-size[1] // 2))
    given = torch.randn_like(whole)
    (alone,) = torch.autograd.grad(whole, x, given)
    assert torch.equal(alone, given)
    kept = given.clone()
    torch.autograd.grad(_WithHalf.apply(x), x, (given, torch.ones_like(half)))
    assert torch.equal(given, kept)  # gradients of others are not overwritten
    (alone,) = torch.autograd.grad(_WithHalf.apply(x)[1], x, torch.ones_like(half))
    (expected,) = torch.autograd.grad(resize(x, half.shape[2:]), x, torch.ones_like(half))
    torch.testing.assert_close(alone, expected)


def test_every_memory_needs_a_layer():
    """Or a run over several devices would wait for gradients of the others."""
    with pytest.raises(UserError, match="num_layers=2"):
        MaskedAttentionDecoder(CLASSES, WIDTH, num_layers=2)
