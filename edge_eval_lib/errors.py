"""The one exception whose message is written for a person."""


class UserError(Exception):
    """Something the user can put right; the message is one sentence: what, where, what would be right."""
