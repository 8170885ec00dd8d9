"""The plain form of a vCPU's state, held against what it must be before anything of it is used."""

VERSION = 1
STATE_KEYS = frozenset((
    "version", "mp_state", "events", "sregs2", "regs", "xcrs", "lapic", "debugregs", "xsave",
    "msrs", "cpuid", "tsc_khz",
))


def key_of(name):
    """The key of a part whose ioctl is KVM_GET_``name``."""
    return name.lower().removeprefix("vcpu_")


def check_keys(state, msrs_max, cpuid_max):
    """Refuse a state of another form before anything of it is used."""
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise ValueError(f"vCPU state: version {VERSION} is needed")
    if state.keys() != STATE_KEYS:
        odd = sorted(map(str, state.keys() ^ STATE_KEYS))
        raise ValueError(f"vCPU state: {', '.join(odd)}: missing or unknown")
    for key in STATE_KEYS - {"version", "msrs", "cpuid", "tsc_khz"}:
        if not isinstance(state[key], bytes):
            raise ValueError(f"vCPU state: {key} must be bytes")
    for key, most in (("msrs", msrs_max), ("cpuid", cpuid_max)):
        if not isinstance(state[key], (list, tuple)) or len(state[key]) > most:
            raise ValueError(f"vCPU state: {key} must be a list of at most {most} rows")
    if type(state["tsc_khz"]) is not int or not 0 < state["tsc_khz"] < 1 << 31:
        raise ValueError(f"vCPU state: tsc_khz={state['tsc_khz']!r} is no frequency")


def checked_row(row, count, bits, key):
    """A tuple of so many unsigned numbers of so many bits."""
    if not isinstance(row, (list, tuple)) or len(row) != count or any(
            type(n) is not int or n < 0 or n >> bits for n in row):
        raise ValueError(f"vCPU state: {key}: {str(row)[:80]} is no row of {count} numbers")
    return tuple(row)
