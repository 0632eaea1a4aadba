"""The two ways pocketvit says no; each message is one sentence that names the thing and the way out."""


class PocketvitError(Exception):
    """Base of every error pocketvit raises on purpose."""


class BadInput(PocketvitError, ValueError):
    """What was asked for cannot be done as asked; raised before work starts (CLI exit code 2)."""


class CheckFailed(PocketvitError, RuntimeError):
    """The work was done and the result did not hold up to its check (CLI exit code 1)."""
