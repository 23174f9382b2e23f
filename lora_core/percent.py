"""Says figures in words that people read."""

from __future__ import annotations


def percent(share: float, digits: int = 2) -> str:
    """Return a share as so many figures and never as a power of ten: 0.941 is 94 %, and 1.18 is 120 %."""
    return f"{float(f'{100 * share:.{digits}g}'):.10g} %"


def whole_percent(share: float) -> str:
    """Return a share without decimals: 0.0051 is 1 %."""
    return f"{100 * share:.0f} %"
