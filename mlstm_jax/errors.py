"""The errors that a user can put right."""


class UserError(ValueError):
    """Something the user can put right. Scripts print it as one line and exit with status 2."""


class Damaged(UserError):
    """A file of ours does not hold what we wrote. A failing disk or network is an OSError instead."""
