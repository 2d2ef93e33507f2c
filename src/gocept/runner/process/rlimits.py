"""Resource limits by their names; see setrlimit(2)."""

import resource


def limits_of(name: str, value: object) -> tuple[int, int]:
    """A limit as it is set; ValueError for one that there is not."""
    if name != name.lower() or not hasattr(
            resource, f'RLIMIT_{name.upper()}'):
        names = sorted(each.removeprefix('RLIMIT_').lower()
                       for each in dir(resource) if each.startswith('RLIMIT_'))
        raise ValueError(f'there is no resource limit {name!r}; there are: '
                         + ', '.join(names))
    match value:
        case int():
            return value, value
        case [int(soft), int(hard)]:
            return soft, hard
    raise ValueError(f'the resource limit {name!r} needs a number or a pair '
                     f'of them, not {value!r}')
