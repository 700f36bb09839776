"""Wording: how numbers are written in the report, the same way in tables, sentences and figures."""

Number = int | float  # JSON keeps them apart, readers do not

_NARROW = "\N{NARROW NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"
_NONE = "\N{EN DASH}"


def percent(share: Number | None, digits: int = 1) -> str:
    """Return a share of 1 as a percentage."""
    return _NONE if share is None else f"{signed(100 * share, digits)}{_NARROW}%"


def signed(value: Number | None, digits: int) -> str:
    """Return a number with a real minus sign, and never as minus zero."""
    if value is None:
        return _NONE
    text = f"{value:.{digits}f}"
    return text.replace("-", _MINUS) if float(text) else text.lstrip("-")


def count(number: int) -> str:
    """Return an integer in groups of three."""
    return f"{number:,}".replace(",", _NARROW) if number >= 10_000 else str(number)


def plural(number: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count(number)} {noun}" + ("" if number == 1 else "s")


def duration(seconds: Number) -> str:
    """Return seconds, minutes or hours, whichever reads best."""
    if seconds < 99.95:
        return f"{seconds:.1f}{_NARROW}s" if seconds >= 0.05 else f"{seconds:.2f}{_NARROW}s"
    minutes = seconds / 60
    return f"{minutes:.1f}{_NARROW}min" if minutes < 99.95 else f"{minutes / 60:.1f}{_NARROW}h"


def moment(stamp: str) -> str:
    """Return an ISO time as date and minute; an unknown form stays as it is."""
    date, _, time = stamp.partition("T")
    zone = " UTC" if stamp.endswith(("+00:00", "Z")) else ""
    return f"{date}, {time[:5]}{zone}" if time else stamp


def unbroken(sentence: str) -> str:
    """Return a sentence in which no line break parts a number from its per cent sign."""
    return sentence.replace(" %", f"{_NARROW}%")
