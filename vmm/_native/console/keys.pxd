"""The keys that a terminal's user gives to the VMM: Ctrl-A and one more."""

from libc.stdint cimport uint8_t

cdef enum:
    ESCAPE_KEY = 1               # Ctrl-A

cdef enum KeyAction:
    KEY_NONE
    KEY_STOP                     # x: the power button
    KEY_SWITCH                   # c: type to the other console
    KEY_HELP                     # h and ?: list the keys


cdef inline KeyAction action_of(uint8_t key) noexcept nogil:
    if key == b"x":
        return KEY_STOP
    if key == b"c":
        return KEY_SWITCH
    if key == b"h" or key == b"?":
        return KEY_HELP
    return KEY_NONE


cdef inline KeyAction sort_keys(const uint8_t *data, size_t length, bint *escaped, uint8_t *kept,
                                size_t *kept_length, size_t *used) noexcept nogil:
    """Sort what was typed, up to the first action: what is the guest's goes to ``kept``.

    Ctrl-A Ctrl-A is one Ctrl-A; Ctrl-A and a key without an action is both. ``kept`` has room for
    one byte more than ``length``, as a Ctrl-A may have waited for its key in ``escaped``.
    """
    cdef size_t i
    cdef KeyAction action
    kept_length[0] = 0
    for i in range(length):
        used[0] = i + 1
        if not escaped[0]:
            if data[i] == ESCAPE_KEY:
                escaped[0] = True
                continue
        else:
            escaped[0] = False
            action = action_of(data[i])
            if action != KEY_NONE:
                return action
            if data[i] != ESCAPE_KEY:
                kept[kept_length[0]] = ESCAPE_KEY
                kept_length[0] += 1
        kept[kept_length[0]] = data[i]
        kept_length[0] += 1
    used[0] = length
    return KEY_NONE
