"""Files as a faulty disk or a careless hand would leave them."""

from __future__ import annotations

import random


def mutated_bytes(text: str, chance: random.Random) -> bytes:
    """The text with a few bytes changed, removed or doubled."""
    content = bytearray(text.encode())
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content))
        match chance.randrange(4):
            case 0:
                content[at] = chance.randrange(256)
            case 1:
                del content[at : at + chance.randint(1, 30)]
            case 2:
                content[at:at] = content[at : at + chance.randint(1, 30)]
            case _:
                content[at] = ord(chance.choice('0123456789-.e[]{}",:&*! \n'))
        if not content:
            break
    return bytes(content)
