"""PPO: the published allocator, kept as it is because it is published.

A policy and a critic see a state of 3 x depth numbers. After every second reward, 60 gradient steps
are taken on those two transitions. With gamma = 1 the two returns are r0 + r1 and r1; normalised to
zero mean and unit (unbiased) standard deviation they are always +-0.7071 times the sign of r0:
`normalised_returns` is tested to be so. The second reward and all magnitudes vanish, and the second
action gets the opposite label of the first. It is hard to see what could be learned from that.

Reference: Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347.
"""

import torch
from torch import Tensor
from torch.nn import functional

from vprompt.adapters._placement.allocators import Allocator, Situation
from vprompt.core.randomness import stream

HIDDEN, UPDATE_EVERY, STEPS, CLIP = 64, 2, 60, 0.2
RATES = (3e-4, 1e-3)  # of the policy and of the critic
VALUE_SHARE, ENTROPY_SHARE = 0.5, 0.01


class PPO(Allocator):
    """Two networks of two hidden layers each, as flat vectors in buffers with Adam's moments."""

    weights: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor
    states: Tensor
    facts: Tensor
    filled: Tensor

    def __init__(self, depth: int, seed: int) -> None:
        super().__init__()
        self.depth = depth
        generator = stream(seed, "placement policy")
        parts = [_initial(depth, outputs, generator) for outputs in (depth, 1)]
        self.policy_size = len(parts[0])
        flat = torch.cat(parts)
        self.register_buffer("weights", flat)
        self.register_buffer("first", torch.zeros_like(flat))
        self.register_buffer("second", torch.zeros_like(flat))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("states", torch.zeros(UPDATE_EVERY, 3 * depth))
        # Per transition: action, its log-probability, the critic's value, the reward.
        self.register_buffer("facts", torch.zeros(UPDATE_EVERY, 4))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def choose(self, situation: Situation, seed: int, purpose: str) -> int | None:
        """Sample a block; never the most probable one, and the origin is allowed."""
        state = state_of(situation).to(self.weights)
        logits, value = self.judge(self.weights, state[None])
        chances = logits[0].softmax(0)
        action = torch.multinomial(chances.cpu(), 1, generator=stream(seed, purpose))
        row = int(self.filled)
        self.states[row] = state
        self.facts[row] = torch.stack(
            [action[0].to(chances), chances[action[0]].log(), value[0], value.new_zeros(())]
        )
        return int(action) if bool(situation.room[int(action)]) else None

    def learn(self, reward: float) -> None:
        """Store the reward of the last action; after every second one, update."""
        self.facts[int(self.filled), 3] = reward
        self.filled += 1
        if int(self.filled) == UPDATE_EVERY:
            self._update()
            self.filled.zero_()

    def judge(self, weights: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return action logits `[count, depth]` and values `[count]` of states."""
        policy, critic = weights.split([self.policy_size, len(weights) - self.policy_size])
        return _network(policy, states, self.depth), _network(critic, states, 1)[:, 0]

    def _update(self) -> None:
        actions, before, values, rewards = self.facts.clone().T
        returns = normalised_returns(rewards)
        for _ in range(STEPS):
            weights = self.weights.clone().requires_grad_()
            with torch.enable_grad():
                logits, value = self.judge(weights, self.states)
                loss = ppo_loss(logits, value, actions.long(), before, returns, returns - values)
                if not torch.isfinite(loss):
                    continue
                (gradient,) = torch.autograd.grad(loss, [weights])
            self._adam(gradient)

    def _adam(self, gradient: Tensor, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.steps += 1
        count = int(self.steps)
        self.first.lerp_(gradient, 1 - betas[0])
        self.second.lerp_(gradient.square(), 1 - betas[1])
        rate = torch.full_like(gradient, RATES[1])
        rate[: self.policy_size] = RATES[0]
        size = (self.second / (1 - betas[1] ** count)).sqrt() + 1e-8
        self.weights -= rate * (self.first / (1 - betas[0] ** count)) / size


def state_of(situation: Situation) -> Tensor:
    """Return `[3 depth]`: z-scores of the block sums, shares without the leaver, its block."""
    sums = situation.sums.float()
    spread = (sums - sums.mean()) / (sums.std(unbiased=False) + 1e-8)
    origin = functional.one_hot(torch.tensor(situation.origin), len(sums)).to(sums)
    shares = (situation.counts.to(sums) - origin) / max(float(situation.counts.sum()) - 1, 1)
    return torch.cat([spread, shares, origin])


def normalised_returns(rewards: Tensor) -> Tensor:
    """Return the undiscounted sums of later rewards, at zero mean and unit unbiased deviation."""
    returns = rewards.flip(0).cumsum(0).flip(0)
    return (returns - returns.mean()) / (returns.std() + 1e-8)


def ppo_loss(
    logits: Tensor, value: Tensor, actions: Tensor, before: Tensor, returns: Tensor, gain: Tensor
) -> Tensor:
    """Return the clipped surrogate with the critic's error and the entropy bonus, as a mean."""
    logs = logits.log_softmax(1)
    ratio = (logs.gather(1, actions[:, None])[:, 0] - before).exp()
    surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain)
    entropy = -(logs.exp() * logs).sum(1)
    error = functional.mse_loss(value, returns)
    return (-surrogate + VALUE_SHARE * error - ENTROPY_SHARE * entropy).mean()


def _sizes(depth: int, outputs: int) -> list[tuple[int, int]]:
    return [(HIDDEN, 3 * depth), (HIDDEN, HIDDEN), (outputs, HIDDEN)]


def _initial(depth: int, outputs: int, generator: torch.Generator) -> Tensor:
    """Draw weights and biases as torch's linear layers do, U(-1, 1) / sqrt(inputs)."""
    parts = []
    for rows, columns in _sizes(depth, outputs):
        drawn = 2 * torch.rand(rows * columns + rows, generator=generator) - 1
        parts.append(drawn / columns**0.5)
    return torch.cat(parts)


def _network(flat: Tensor, states: Tensor, outputs: int) -> Tensor:
    sizes = _sizes(states.shape[1] // 3, outputs)
    parts = flat.split([rows * columns + rows for rows, columns in sizes])
    for index, (part, (rows, columns)) in enumerate(zip(parts, sizes, strict=True)):
        weight, bias = part.split([rows * columns, rows])
        states = functional.linear(states, weight.view(rows, columns), bias)
        if index < len(sizes) - 1:
            states = states.tanh()
    return states
