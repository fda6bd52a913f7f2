"""The one exception whose message is written for a person."""


class UserError(Exception):
    """Something the user can put right; the message says what, where, and what would be right."""
