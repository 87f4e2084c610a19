"""The errors of this tool that are for people: what is wrong and what to do."""


class BenchError(Exception):
    """Something that the user can do something about; printed without a traceback."""


class OutOfTime(Exception):
    """--stop-after is over; what is missing is measured by the next call with --append."""
