"""How starting, or a command, says that it cannot go on."""


class Refused(Exception):
    """What was asked cannot be done; the message says why and what would help. A command ends with `status`."""

    def __init__(self, message: str, *, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
