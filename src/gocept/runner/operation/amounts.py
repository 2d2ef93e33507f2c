"""How numbers of bytes and times stand in a table, for people."""

NONE = '-'


def size(count: object) -> str:
    """A number of bytes as people write it."""
    if not isinstance(count, int):
        return NONE
    if count < 1024:
        return f'{count} B'
    value = float(count)
    units = ['TiB', 'GiB', 'MiB', 'KiB']
    while (value := value / 1024) >= 1000 and len(units) > 1:
        units.pop()
    return f'{value:.1f} {units[-1]}'


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    seconds = int(seconds)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f'{days} d {hours % 24:02} h'
    if hours:
        return f'{hours} h {minutes % 60:02} min'
    if minutes:
        return f'{minutes} min {seconds % 60:02} s'
    return f'{seconds} s'
