"""A server that keeps a number, which its clients change.

See `IServer` for what tasks are.
"""

from typing import NotRequired, TypedDict

from gocept.runner.background import ClientSocket, respond


class State(TypedDict):
    """What the server keeps."""

    value: int
    request_count: int
    status: NotRequired[str]


class Change(TypedDict):
    """What a client asks for."""

    command: str
    value_change: int


def init_task(client_socket: ClientSocket) -> State:
    """Begin with 1000; nothing was asked for yet."""
    return {'request_count': 0, 'value': 1000}


def exec_task(client_socket: ClientSocket, init_args: State,
              exec_args: Change) -> State:
    """Increase or decrease the number."""
    init_args['request_count'] += 1
    if exec_args['command'] == 'increase':
        init_args['value'] += exec_args['value_change']
    elif exec_args['command'] == 'decrease':
        init_args['value'] -= exec_args['value_change']
    return init_args


def exit_task(client_socket: ClientSocket, init_args: State,
              exit_args: dict[str, object]) -> None:
    """Respond with the number, and how often the server was called."""
    init_args['request_count'] += 1
    init_args['status'] = 'Exited.'
    respond(client_socket, init_args)
