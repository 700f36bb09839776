"""Helpers for comparisons in float64."""

import torch


def awake(backbone):
    """Give weights a size at which prompts matter: as drawn, layer scales hide every block."""
    randomness = torch.Generator().manual_seed(5)
    backbone = backbone.double()
    with torch.no_grad():
        for parameter in backbone.parameters():
            noise = torch.randn(parameter.shape, generator=randomness, dtype=torch.float64)
            parameter.add_(0.15 * noise)
    return backbone


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()
