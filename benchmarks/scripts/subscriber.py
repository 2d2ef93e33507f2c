"""Who listens to the events of a tick; see ``subscribers.zcml``."""


def listen(event: object) -> None:
    pass
