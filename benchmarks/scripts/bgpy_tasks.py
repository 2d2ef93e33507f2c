"""The tasks of bgpy's server."""

from typing import Any

from bgpy.server import respond

State = dict[str, int]


def init_task() -> State:
    return {'request_count': 0, 'value': 0}


def exec_task(client_socket: Any, state: State,
              request: dict[str, Any]) -> State:
    state['request_count'] += 1
    state['value'] += request['value_change']
    respond(client_socket, {'value': state['value']})
    return state


def exit_task(client_socket: Any, state: State,
              request: dict[str, Any]) -> None:
    return None
