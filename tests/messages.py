"""Messages that a receiver must survive."""
import struct


def damaged(rng, good):
    """Return one of the `good` messages, bytes, that is damaged at one to three random places.

    rng: a random.Random. Each damage cuts the message, adds bytes, changes a byte, or overwrites four bytes with an
    int32 such as -1 or 2**31 - 1.
    """
    message = bytearray(rng.choice(good))
    for _ in range(rng.randint(1, 3)):
        action = rng.randrange(4)
        if action == 0:
            message = message[:rng.randint(0, len(message))]
        elif action == 1:
            message += bytes(rng.randint(1, 9))
        elif action == 2 and message:
            message[rng.randrange(len(message))] = rng.randrange(256)
        elif len(message) >= 4:
            struct.pack_into('<i', message, rng.randrange(len(message) - 3),
                             rng.choice([0, 1, -1, 2 ** 31 - 1, -2 ** 31, 65536, 4, 3]))
    return bytes(message)
