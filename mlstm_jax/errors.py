"""The errors that a user can put right."""


class UserError(ValueError):
    """Something the user can put right. Programs print it as one line and exit with status 2.

    A message names a parameter by its Python name in backticks, as `seq_length`; cli/ prints that as its flag.
    `command` is what to run next, as ("eval", "RUN"), with the parameters {"task": "imdb"}; cli/ adds it to the line.
    """

    def __init__(self, message: str, *command: str, **parameters: object):
        super().__init__(message)
        self.command, self.parameters = command, parameters


class Damaged(UserError):
    """A file of ours does not hold what we wrote. A failing disk or network is an OSError instead."""
