"""The net `f(x) = a . max(W x, 0)^2` under l2-FGM in plain NumPy: margins, gradients, descent.

Its degree is 3. The gradient is the frozen one: delta held fixed.
"""

import numpy as np


def outputs(params, inputs):
    """`f(x)` for every row. Shapes: params (W (h, d), a (1, h)); inputs (n, d) -> (n,)."""
    weight, head = params
    return np.maximum(inputs @ weight.T, 0) ** 2 @ head[0]


def input_gradients(params, inputs):
    """`grad_x f(x)` for every row. Shapes: (n, d)."""
    weight, head = params
    return (2 * np.maximum(inputs @ weight.T, 0) * head[0]) @ weight


def attacked(params, dataset, radius):
    """`x + delta`, `delta = -radius y g / |g|_2`, 0 where g is. Shapes: (n, d)."""
    gradients = dataset.y[:, None] * input_gradients(params, dataset.x)
    lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
    return dataset.x - radius * gradients / np.where(lengths > 0, lengths, 1.0)


def margins(params, dataset, radius=0.0):
    """`q_i`. Shapes: (n,)."""
    return dataset.y * outputs(params, attacked(params, dataset, radius))


def margin_gradients(params, dataset, radius=0.0):
    """`grad q_i`, W first, then a. Shapes: (n, P)."""
    weight, head = params
    inputs = attacked(params, dataset, radius)
    hidden = np.maximum(inputs @ weight.T, 0)
    of_weight = (2 * hidden * head[0])[:, :, None] * inputs[:, None, :]
    stacked = np.concatenate([of_weight.reshape(len(inputs), -1), hidden**2], axis=1)
    return dataset.y[:, None] * stacked


def flat(params):
    """All entries in one vector."""
    return np.concatenate([np.ravel(leaf) for leaf in params])


def shaped(vector, like):
    """The inverse of `flat`."""
    sizes = np.cumsum([np.size(leaf) for leaf in like])[:-1]
    parts = np.split(np.asarray(vector), sizes)
    return tuple(part.reshape(np.shape(leaf)) for part, leaf in zip(parts, like, strict=True))


def unit(params):
    """`params / |params|_2`."""
    length = np.linalg.norm(flat(params))
    return tuple(np.asarray(leaf) / length for leaf in params)


def loss_gradient(params, dataset, radius=0.0):
    """`grad sum_i exp(-q_i)` and the loss itself. Shapes: (P,), ()."""
    losses = np.exp(-margins(params, dataset, radius))
    return -losses @ margin_gradients(params, dataset, radius), losses.sum()


def descended(params, dataset, radius, step_size, num_steps, *, normalized=False):
    """Parameters after each of the steps of gradient descent on the exponential loss, and its
    losses; `normalized` divides every gradient by the loss."""
    points, losses = [flat(params)], []
    for _ in range(num_steps):
        gradient, loss = loss_gradient(shaped(points[-1], params), dataset, radius)
        points.append(points[-1] - step_size * gradient / (loss if normalized else 1.0))
        losses.append(loss)
    return np.array(points), np.array(losses)
