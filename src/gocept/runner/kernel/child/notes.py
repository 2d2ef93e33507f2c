"""What a kernel remembers of a process for those who find it.

Each note is a value of the kernel. Its name is that of the process, and a word
after a dot.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gocept.runner.kernel.client.client import Kernel

_WORDS = ('declaration', 'ready', 'ahead')


class Notes:
    """The notes of one process; `life` tells it from one before."""

    def __init__(self, kernel: 'Kernel', key: str) -> None:
        self._kernel = kernel
        self._key = key

    def _name(self, word: str) -> str:
        return f'{self._key}.{word}'

    @property
    def declaration(self) -> str | None:
        """A digest of what it was started with; None if that is not known."""
        return self._kernel.get(self._name('declaration'))

    @declaration.setter
    def declaration(self, digest: str) -> None:
        self._kernel.set(self._name('declaration'), digest)

    def is_ready(self, life: str) -> bool:
        """Whether an executor has found it ready."""
        return self._kernel.get(self._name('ready')) == life

    def set_ready(self, life: str) -> None:
        """Remember that it is ready."""
        self._kernel.set(self._name('ready'), life)

    def ahead(self, life: str) -> dict[str, int]:
        """See `gocept.runner.kernel.child.intake.Notes`."""
        known, ahead = json.loads(
            self._kernel.get(self._name('ahead')) or '["", {}]')
        return dict(ahead) if known == life else {}

    def set_ahead(self, life: str, ahead: Mapping[str, int]) -> None:
        """See `gocept.runner.kernel.child.intake.Notes`."""
        self._kernel.set(self._name('ahead'), json.dumps([life, ahead]))

    def clear(self) -> None:
        """Forget them all."""
        names = [self._name(word) for word in _WORDS]
        found = self._kernel.list_values(*names)
        if found:
            self._kernel.remove_values(*found)
