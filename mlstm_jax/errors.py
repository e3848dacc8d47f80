"""The errors that a user can put right."""


class UserError(ValueError):
    """Something the user can put right. Scripts print it as one line and exit with status 2."""


def require(condition: object, message: str) -> None:
    """Raise a UserError unless the condition holds."""
    if not condition:
        raise UserError(message)


class Damaged(UserError):
    """A file of ours does not hold what we wrote. A failing disk or network is an OSError instead."""
