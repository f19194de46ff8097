"""Reads all documents of files, for the tests of this folder."""

import pytest

from maxfdl.data import Files
from maxfdl.errors import UserError


@pytest.fixture
def documents():
    def read(*names, **settings):
        files = Files(files=tuple(map(str, names)), **settings)
        return [files[i] for i in range(len(files))]

    return read


@pytest.fixture
def refusal(documents):
    """Returns the sentence with which files are refused."""

    def read(*names, **settings):
        with pytest.raises(UserError) as error:
            documents(*names, **settings)
        assert "\n" not in str(error.value)
        return str(error.value)

    return read
