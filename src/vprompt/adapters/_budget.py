"""Budget: candidate weights whose expected cost is held to a limit by a price that all blocks pay.

A penalty on the expected cost pulls on every block alike, and by more than any image does: Adam
divides each step by its size, so what a block gains from its tokens is lost (docs/search.md). A
price takes as much from all of them, and leaves alpha's gradient to the images.
"""

from torch import Tensor

_HALVINGS = 60  # of the interval in which the price lies
_FADED = 60.0  # logits below the best at which a weight counts as nothing


def priced(alpha: Tensor, costs: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Return weights and the price: softmax(alpha - price * costs), at most `limit` in all.

    `alpha` and `costs` are `[blocks, candidates]`; the price is the smallest from 0 upwards at
    which the weights' expected costs sum to at most `limit`. The gradient of the weights is exact:
    it knows how the price follows alpha. A limit below the cheapest choice is approached only.
    """
    costs = costs.to(alpha)
    price = _price(alpha.detach().double(), costs.double(), limit).to(alpha)
    if float(price) > 0:
        held = (alpha.detach() - price * costs).softmax(1)
        slope = (held * costs.square()).sum() - (held * costs).sum(1).square().sum()
        if float(slope) > 0:
            # Worth nothing, but with the slope of the implicit function.
            beyond = ((alpha - price * costs).softmax(1) * costs).sum()
            price = price + (beyond - beyond.detach()) / slope
    return (alpha - price * costs).softmax(1), price.detach()


def _price(alpha: Tensor, costs: Tensor, limit: float) -> Tensor:
    def expected(price: Tensor) -> float:
        return float(((alpha - price * costs).softmax(1) * costs).sum())

    low = alpha.new_zeros(())
    if expected(low) <= limit:
        return low
    steps = costs.sort(1).values.diff(dim=1)
    spread = (alpha.amax(1) - alpha.amin(1)).max()
    high = (spread + _FADED) / steps[steps > 0].min()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) > limit else (low, middle)
    return high
