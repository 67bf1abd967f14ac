"""Numbers with their nouns."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return ``1 image`` or ``2 images``; ``plural`` for a noun that does not just take an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
