"""Conformance with scores and masks computed by the released Synaptic-Flow code in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nopr import criteria, masks, pruning

pytestmark = pytest.mark.usefixtures("double")
DENSITIES = ("0.2", "0.05", "0.01")
METHODS = {"mag": "mag", "snip": "snip", "grasp": "grasp", "synflow1": "synflow1"}


@pytest.fixture(scope="module")
def golden(golden_dir):
    return np.load(golden_dir / "synaptic_flow_masks.npz")


def weights(golden, net):
    names = sorted({k.split("/")[1] for k in golden.files if k.startswith(f"{net}/layer")})
    return {
        name: {part: golden[f"{net}/{name}/{part}"] for part in ("kernel", "bias")}
        for name in names
    }


def dense(layer, values):
    return jnp.dot(values, layer["kernel"], precision="highest") + layer["bias"]


def mlp(params, inputs):
    values = inputs.reshape(inputs.shape[0], -1)
    for i in range(2):
        values = jax.nn.relu(dense(params[f"layer{i}"], values))
    return dense(params["layer2"], values)


def convolve(layer, values, stride):
    out = jax.lax.conv_general_dilated(
        values,
        layer["kernel"],
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    return jax.nn.relu(out + layer["bias"])


def conv(params, inputs):
    values = convolve(params["layer1"], convolve(params["layer0"], inputs, 1), 2)
    return dense(params["layer2"], values.mean(axis=(1, 2)))


NETS = {"mlp": mlp, "conv": conv}


def cross_entropy(apply, temperature=1.0):
    def loss(params, batch):
        images, labels = batch
        logs = jax.nn.log_softmax(apply(params, images) / temperature)
        return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], axis=1))

    return loss


def criterion(method, net):
    apply = NETS[net]
    return {
        "mag": criteria.magnitude(),
        "snip": criteria.snip(cross_entropy(apply), stacked=True),
        "grasp": criteria.grasp(cross_entropy(apply, 200.0), stacked=True),
        "synflow1": criteria.synflow(apply, input_shape=(28, 28, 1)),
    }[method]


def batches(golden):
    images = golden["images"].astype(np.float64).reshape(2, 50, 28, 28, 1)
    return images, golden["labels"].astype(np.int64).reshape(2, 50)


def count(n, density):
    """How many weights the released code keeps."""
    return n - int((1 - density) * n)


def kernels(tree):
    return {name: np.asarray(layer["kernel"]) for name, layer in tree.items()}


def assert_masks_equal(kept, golden, prefix):
    for name, mask in kernels(kept).items():
        np.testing.assert_array_equal(mask, golden[f"{prefix}/{name}"].astype(bool))


@pytest.mark.parametrize("net", NETS)
def test_forward_pass_matches(net, golden):
    logits = NETS[net](weights(golden, net), golden["images"].astype(np.float64))
    np.testing.assert_allclose(logits, golden[f"{net}/logits"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("method", METHODS)
def test_scores_match_to_1e_9_and_every_mask_exactly(method, net, golden):
    params = weights(golden, net)
    scores = criterion(method, net)(params, batches(golden), key=None)
    ours = kernels(scores)
    theirs = {name: golden[f"{net}/{method}/scores/{name}"] for name in ours}
    if method == "snip":
        scale = sum(leaf.sum() for leaf in ours.values())
    elif method == "grasp":
        scale = abs(sum(leaf.sum() for leaf in ours.values())) + 1e-10
    elif method == "synflow1":  # ours are divided by R, one number for all layers
        scale = ours["layer0"].sum() / theirs["layer0"].sum()
    else:
        scale = 1.0
    for name, leaf in ours.items():
        peak = np.abs(theirs[name]).max()
        np.testing.assert_allclose(leaf / scale, theirs[name], rtol=1e-9, atol=1e-12 * peak)
    for density in DENSITIES:
        kept = masks.top(scores, count=count(masks.size(scores), float(density)), warn=False)
        assert_masks_equal(kept, golden, f"{net}/{method}/mask{density}")


@pytest.mark.parametrize("net", NETS)
def test_synflow_100_masks_match_exactly_round_by_round_counts(net, golden):
    params = weights(golden, net)
    score = criteria.synflow(NETS[net], input_shape=(28, 28, 1))
    n = sum(leaf.size for leaf in kernels(params).values())
    prune = pruning.pruner(score, rounds=100)
    run = jax.jit(lambda counts: prune(params, None, count=counts, key=jax.random.key(0)))
    for density in DENSITIES:
        rounds = [count(n, float(density) ** (t / 100)) for t in range(1, 101)]
        assert_masks_equal(
            run(np.array(rounds, np.int32)), golden, f"{net}/synflow100/mask{density}"
        )


@pytest.mark.parametrize("net", NETS)
def test_synflow_gives_the_mask_of_double_precision_in_a_program_of_single(net, golden):
    """On the golden weights rounded to float32, the criterion and `top` keep float64 themselves."""
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), weights(golden, net))
    score = criteria.synflow(NETS[net], input_shape=(28, 28, 1))
    n = sum(leaf.size for leaf in kernels(params).values())
    prune = pruning.pruner(score, rounds=100)
    rounds = np.array([count(n, 0.01 ** (t / 100)) for t in range(1, 101)], np.int32)

    def run(params):
        return jax.jit(lambda p: prune(p, None, count=rounds, key=jax.random.key(0)))(params)

    with jax.enable_x64(False):
        single = run(params)
    double = run(jax.tree.map(lambda leaf: leaf.astype(np.float64), params))
    jax.tree.map(np.testing.assert_array_equal, single, double)
