"""A module with a real bug: it imports something that does not exist."""

import maxfdl_no_such_dependency  # noqa: F401
