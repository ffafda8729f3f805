"""SAMTrainer against an implementation by others: optax.contrib's SAM in JAX."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
from cases import Recorder, build, make_trainer

pytestmark = pytest.mark.external


@pytest.mark.parametrize("rho", [0.02, 0.2])
def test_twenty_steps_equal_optax(rho: float, tmp_path: Path) -> None:
    jax = pytest.importorskip("jax")
    pytest.importorskip("optax")
    import jax.numpy as jnp
    import optax
    from optax.contrib import normalize, sam

    jax.config.update("jax_enable_x64", True)
    model, recorder = build("mlp"), Recorder()
    params = [jnp.asarray(p.detach().numpy()) for p in model.parameters()]
    before = copy.deepcopy(model)
    make_trainer(
        model, tmp_path, recorder=recorder, rho=rho, optim_args="momentum=0.9", learning_rate=0.1
    ).train()

    def loss(params: Any, x: Any, labels: Any) -> Any:
        w1, b1, w2, b2 = params
        logits = jnp.tanh(x @ w1.T + b1) @ w2.T + b2
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    # opaque mode takes SAM's two gradients inside one update; the floor of `normalize` is zero
    optimizer = sam(
        optax.sgd(0.1, momentum=0.9),
        optax.chain(normalize(), optax.sgd(rho)),
        sync_period=2,
        opaque_mode=True,
    )
    state = optimizer.init(params)
    for batch in recorder.batches[:20]:
        x, labels = batch["x"].numpy(), batch["labels"].numpy()
        grad_fn = jax.grad(lambda p, _, x=x, labels=labels: loss(p, x, labels))
        grads = grad_fn(params, 0)
        updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
    expected = np.concatenate([np.asarray(p).ravel() for p in params])
    trained = oracles.flat_weights(model).numpy()
    assert np.abs(trained - oracles.flat_weights(before).numpy()).max() > 0.01
    np.testing.assert_allclose(trained, expected, rtol=0, atol=1e-10)
