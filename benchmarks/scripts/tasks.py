"""The tasks of our server: the example of the manual, and bytes to send back.
"""

from gocept.runner.background import ClientSocket, respond

State = dict[str, int]


def init_task() -> State:
    return {'request_count': 0, 'value': 0}


def exec_task(client_socket: ClientSocket, state: State,
              request: dict[str, object]) -> State:
    if request['command'] == 'echo':
        respond(client_socket, {'data': request['data']})
        return state
    state['request_count'] += 1
    change = request['value_change']
    assert isinstance(change, int)
    state['value'] += change
    respond(client_socket, {'value': state['value']})
    return state


def exit_task(client_socket: ClientSocket, state: State,
              request: dict[str, object]) -> None:
    respond(client_socket, state)
