import numpy as np

from pipeline.verdict.head import count_activated, raw_scores, standardize


def test_activated_neurons_are_counted_layer_by_layer() -> None:
    vectors = np.array([[1, 5, 2, 9, 0], [0, 0, 4, 4, 4]], dtype=np.float32)
    counts = count_activated(vectors, np.array([1.5, 3.0], dtype=np.float32), [2, 3])
    np.testing.assert_array_equal(counts, [[1, 1], [0, 3]])


def test_mlp_matches_torch() -> None:
    import torch

    torch.manual_seed(0)
    first, second = torch.nn.Linear(6, 4), torch.nn.Linear(4, 1)
    network = torch.nn.Sequential(first, torch.nn.ReLU(), second)
    arrays = {
        "mean": np.full(6, 0.5, dtype=np.float32),
        "scale": np.full(6, 2.0, dtype=np.float32),
        "limit": np.array([0.5], dtype=np.float32),
        "weight_0": first.weight.detach().numpy().T,
        "bias_0": first.bias.detach().numpy(),
        "weight_1": second.weight.detach().numpy().T,
        "bias_1": second.bias.detach().numpy(),
    }
    vectors = np.random.default_rng(0).standard_normal((3, 6), dtype=np.float32)
    standardized = standardize(arrays, vectors, [6])
    expected = network(torch.from_numpy(((vectors - 0.5) / 2).clip(-0.5, 0.5))).detach().numpy()[:, 0]
    np.testing.assert_allclose(raw_scores(arrays, standardized), expected, rtol=1e-5)


def test_a_linear_head() -> None:
    arrays = {"weight": np.array([1.0, -2.0], dtype=np.float32), "bias": np.array([0.5], dtype=np.float32)}
    one = np.array([[3.0, 1.0]], dtype=np.float32)
    np.testing.assert_allclose(raw_scores(arrays, one), [1.5])
